"""The tensor layout: names, shapes and order of what a flat vector of weights means.

A model travels as one flat float32 vector in wire order. Both sides derive the same layout from the
artifact manifest, and compare an 8-byte fingerprint before they believe a payload.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgpack

from fl_protocol.errors import LayoutError

__all__ = ["FINGERPRINT_BYTES", "MAX_PARAMETERS", "MAX_TENSORS", "TensorLayout", "TensorSpec"]

FINGERPRINT_BYTES = 8
MAX_TENSORS = 4096
MAX_PARAMETERS = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One float32 tensor of the flat vector; ``shape`` is row-major, ``()`` is a scalar."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """The tensors of a flat vector, in wire order.

    Raises:
        LayoutError: no tensor, too many, a name twice, or a dimension below 1.
    """

    tensors: tuple[TensorSpec, ...]
    size: int = field(init=False)
    """Elements of the whole flat vector."""
    fingerprint: bytes = field(init=False)
    """First 8 bytes of the sha256 of the msgpack array ``[[name, [dim, ...]], ...]``."""

    def __post_init__(self) -> None:
        if not 0 < len(self.tensors) <= MAX_TENSORS:
            raise LayoutError(f"a layout has 1 to {MAX_TENSORS} tensors, this one has {len(self.tensors)}")
        names = {tensor.name for tensor in self.tensors}
        if len(names) != len(self.tensors):
            raise LayoutError("a tensor name occurs twice in the layout")
        for tensor in self.tensors:
            if any(dim < 1 for dim in tensor.shape):
                raise LayoutError(f"tensor {tensor.name!r} has an empty dimension: {tensor.shape}")
        size = sum(tensor.size for tensor in self.tensors)
        if size > MAX_PARAMETERS:
            raise LayoutError(f"the layout has {size} parameters, more than {MAX_PARAMETERS}")
        canonical = msgpack.packb([[tensor.name, list(tensor.shape)] for tensor in self.tensors])
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "fingerprint", hashlib.sha256(canonical).digest()[:FINGERPRINT_BYTES])

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Iterable[int]]]) -> "TensorLayout":
        """Build a layout from ``(name, shape)`` pairs."""
        return cls(tuple(TensorSpec(name=name, shape=tuple(shape)) for name, shape in tensors))

    def offsets(self) -> Iterator[tuple[TensorSpec, int]]:
        """Yield each tensor with the index of its first element in the flat vector."""
        start = 0
        for tensor in self.tensors:
            yield tensor, start
            start += tensor.size
