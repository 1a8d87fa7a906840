"""The tensor layout: names, shapes and order of what a flat vector of weights means.

A model travels as one flat float32 vector in wire order: weights, and behind them the buffers (running
statistics of a BatchNorm that is averaged over the fleet), which are not coded as weights are. Both sides
derive the same layout from the artifact manifest, and compare an 8-byte fingerprint before they believe a
payload.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgpack

from fl_protocol.errors import LayoutError

__all__ = ["FINGERPRINT_BYTES", "KINDS", "MAX_PARAMETERS", "MAX_TENSORS", "TensorLayout", "TensorSpec"]

FINGERPRINT_BYTES = 8
MAX_TENSORS = 4096
MAX_PARAMETERS = 1 << 31
KINDS = ("weight", "buffer")

Entry: TypeAlias = tuple[str, Iterable[int]] | tuple[str, Iterable[int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One float32 tensor of the flat vector; ``shape`` is row-major, ``()`` is a scalar.

    ``kind`` is one of ``KINDS``.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "weight"
    size: int = field(init=False, repr=False, compare=False)
    """Number of elements."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """The tensors of a flat vector, in wire order: weights, then buffers.

    Raises:
        LayoutError: no weight, too many tensors, a name twice, a dimension below 1, an unknown kind, or a
            weight behind a buffer.
    """

    tensors: tuple[TensorSpec, ...]
    size: int = field(init=False)
    """Elements of the whole flat vector."""
    weight_size: int = field(init=False)
    """Elements of the weights alone: buffers are the elements ``[weight_size, size)``."""
    fingerprint: bytes = field(init=False)
    """First 8 bytes of the sha256 of the msgpack array ``[[name, [dim, ...]], ...]``, in which the entry of
    a buffer is ``[name, [dim, ...], "buffer"]``."""
    weights: "TensorLayout" = field(init=False, repr=False, compare=False)
    """The layout of the weights alone: itself where there is no buffer."""
    _offsets: tuple[tuple[TensorSpec, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.tensors) <= MAX_TENSORS:
            raise LayoutError(f"a layout has 1 to {MAX_TENSORS} tensors, this one has {len(self.tensors)}")
        names = {tensor.name for tensor in self.tensors}
        if len(names) != len(self.tensors):
            raise LayoutError("a tensor name occurs twice in the layout")
        for tensor in self.tensors:
            if any(dim < 1 for dim in tensor.shape):
                raise LayoutError(f"tensor {tensor.name!r} has an empty dimension: {tensor.shape}")
        weights = self._leading_weights()
        size = sum(tensor.size for tensor in self.tensors)
        if size > MAX_PARAMETERS:
            raise LayoutError(f"the layout has {size} parameters, more than {MAX_PARAMETERS}")
        canonical = msgpack.packb(self.entries)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "weight_size", sum(tensor.size for tensor in weights))
        object.__setattr__(self, "fingerprint", hashlib.sha256(canonical).digest()[:FINGERPRINT_BYTES])
        alone = self if len(weights) == len(self.tensors) else TensorLayout(weights)
        object.__setattr__(self, "weights", alone)
        ends = itertools.accumulate(tensor.size for tensor in self.tensors)
        object.__setattr__(self, "_offsets", tuple(zip(self.tensors, (0, *ends), strict=False)))

    def __hash__(self) -> int:
        # Layouts are keys of caches that are asked at every update; to hash all tensors would be most of it.
        return hash(self.fingerprint)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "TensorLayout":
        """Build a layout; entries are ``(name, shape)``, of buffers ``(name, shape, "buffer")``.

        Raises:
            LayoutError: see the class.
        """
        return cls(tuple(_tensor(*entry) for entry in entries))

    @property
    def entries(self) -> list[list[Any]]:
        """What :meth:`of` takes, in the form that the fingerprint is made of."""
        return [_entry(tensor) for tensor in self.tensors]

    @property
    def buffer_size(self) -> int:
        """Elements of the buffers alone."""
        return self.size - self.weight_size

    def offsets(self) -> Sequence[tuple[TensorSpec, int]]:
        """Each tensor with the index of its first element in the flat vector."""
        return self._offsets

    def _leading_weights(self) -> tuple[TensorSpec, ...]:
        """The weights, which stand before every buffer; raises LayoutError."""
        weights = tuple(tensor for tensor in self.tensors if tensor.kind == "weight")
        if not weights:
            raise LayoutError("a layout has at least one weight, this one has none")
        for place, tensor in enumerate(self.tensors):
            if tensor.kind not in KINDS:
                raise LayoutError(f"tensor {tensor.name!r} is of kind {tensor.kind!r}, none of {KINDS}")
            if (tensor.kind == "weight") != (place < len(weights)):
                raise LayoutError(f"tensor {tensor.name!r}: weights stand before buffers in a layout")
        return weights


def _entry(tensor: TensorSpec) -> list[Any]:
    entry: list[Any] = [tensor.name, list(tensor.shape)]
    return entry if tensor.kind == "weight" else [*entry, tensor.kind]


def _tensor(name: str, shape: Iterable[int], kind: str = "weight") -> TensorSpec:
    return TensorSpec(name=name, shape=tuple(shape), kind=kind)
