"""The replay of an ONNX graph as TFLite operators, and how a value is laid out in memory meanwhile.

A value keeps its ONNX axes and may be stored under any permutation of them, a *layout*: a Transpose
costs nothing, what comes out of a convolution stays channels-last through element-wise operators and
reductions, and a real TRANSPOSE is written only where another layout is asked for, once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.build.tflite.flatbuffer import FlatGraph, Shape

__all__ = ["TRANSLATIONS", "Array", "Laid", "Layout", "Replay", "Translation", "Value", "translation"]

Array: TypeAlias = NDArray[Any]
Layout: TypeAlias = tuple[int, ...]
"""The ONNX axes in the order in which they are stored."""

_LARGEST_RANK = 4


class Laid:
    """A value known at run time: its ONNX ``shape``, and the tensors that hold it, by layout."""

    __slots__ = ("shape", "tensors")

    def __init__(self, shape: Sequence[int], tensors: Mapping[Layout, int | Array]) -> None:
        self.shape: Shape = tuple(int(dim) for dim in shape)
        self.tensors = dict(tensors)

    @property
    def first(self) -> Layout:
        """The layout in which the value was made."""
        return next(iter(self.tensors))


Value: TypeAlias = Laid | Array
"""Known at run time, or already now."""
Translation: TypeAlias = Callable[..., Value | list[Value]]
"""``translate(replay, node, *inputs)`` gives the output, or a list of several; an optional input that is
left out is ``None``."""

TRANSLATIONS: dict[str, Translation] = {}
"""ONNX operator to its translation."""


def translation(*ops: str) -> Callable[[Translation], Translation]:
    """Enter a function into the table."""

    def enter(function: Translation) -> Translation:
        TRANSLATIONS.update(dict.fromkeys(ops, function))
        return function

    return enter


class Replay:
    """What every translation works with: the file in the making, and the layouts of values.

    ``fast`` is whether speed may cost memory.
    """

    def __init__(self, graph: FlatGraph, *, fast: bool = True) -> None:
        self.graph = graph
        self.fast = fast

    def laid(self, value: Value) -> Laid:
        """A value as one with a layout."""
        if isinstance(value, Laid):
            return value
        return Laid(value.shape, {tuple(range(value.ndim)): value})

    def new(self, tensor: int) -> Laid:
        """The value of a tensor that is stored in the order of its ONNX axes."""
        shape = self.graph.shape(tensor)
        return Laid(shape, {tuple(range(len(shape))): tensor})

    def tensor(self, value: Value, layout: Layout | None = None) -> int:
        """The tensor that holds a value in ``layout``, in the order of its ONNX axes where none is given."""
        laid = self.laid(value)
        wanted = tuple(range(len(laid.shape))) if layout is None else layout
        held = laid.tensors.get(wanted)
        if held is None:
            held = laid.tensors[wanted] = self._in_layout(laid, wanted)
        if isinstance(held, int):
            return held
        return self.graph.constant(np.ascontiguousarray(held))

    def call(
        self,
        op: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        dtype: Any = np.float32,
        *,
        version: int = 1,
        **options: float,
    ) -> int:
        """Write one operator; see ``FlatGraph.call``."""
        return self.graph.call(op, inputs, tuple(shape), dtype, version=version, **options)

    def reshape(self, tensor: int, shape: Sequence[int]) -> int:
        """The same numbers in the same order under another shape."""
        if self.graph.shape(tensor) == tuple(shape):
            return tensor
        if not shape and self.graph.dtype(tensor) == np.float32:
            # A RESHAPE to a scalar keeps tflite-runtime 2.14 from using XNNPACK at all.
            every = self.graph.integers(*range(len(self.graph.shape(tensor))))
            return self.call("SUM", [tensor, every], (), keep_dims=False)
        return self.call("RESHAPE", [tensor, self.graph.integers(*shape)], shape, self.graph.dtype(tensor))

    def transpose(self, tensor: int, order: Sequence[int]) -> int:
        """Copy a tensor into another order of its axes."""
        old = self.graph.shape(tensor)
        shape = [old[axis] for axis in order]
        moved, moved_to = ([axis for axis in axes if old[axis] != 1] for axes in (range(len(old)), order))
        if moved == moved_to:
            return self.reshape(tensor, shape)
        return self.call("TRANSPOSE", [tensor, self.graph.integers(*order)], shape, self.graph.dtype(tensor))

    def cut(self, tensor: int, start: Sequence[int], sizes: Sequence[int]) -> int:
        """The part of a tensor that begins at ``start`` and has these sizes."""
        if self.graph.shape(tensor) == tuple(sizes):
            return tensor
        inputs = [tensor, self.graph.integers(*start), self.graph.integers(*sizes)]
        return self.call("SLICE", inputs, sizes, self.graph.dtype(tensor))

    def dtype(self, value: Value) -> np.dtype[Any]:
        """The element type of a value in the file."""
        held = value if not isinstance(value, Laid) else value.tensors[value.first]
        if isinstance(held, int):
            return self.graph.dtype(held)
        return np.dtype(np.int32) if held.dtype == np.int64 else held.dtype

    def widened(self, value: Value, rank: int) -> Laid:
        """A value with leading axes of size 1 up to ``rank``; a scalar stays one, it goes with any rank."""
        laid = self.laid(value)
        lead = rank - len(laid.shape)
        if not laid.shape or not lead:
            return laid
        layout, held = laid.first, laid.tensors[laid.first]
        sizes = [1] * lead + [laid.shape[axis] for axis in layout]
        return Laid(
            (1,) * lead + laid.shape,
            {
                (*range(lead), *(axis + lead for axis in layout)): (
                    self.reshape(held, sizes) if isinstance(held, int) else held.reshape(sizes)
                )
            },
        )

    def common_layout(self, values: Sequence[Laid], rank: int) -> Layout:
        """The layout of the largest of the values: the others are cheaper to copy."""
        running = [
            value
            for value in values
            if len(value.shape) == rank and isinstance(value.tensors[value.first], int)
        ]
        if not running:
            return tuple(range(rank))
        return max(running, key=lambda value: math.prod(value.shape)).first

    def elementwise(self, op: str, *values: Value, dtype: Any = None) -> Laid:
        """An operator that broadcasts; ``dtype`` is its output's, the last operand's where not given."""
        rank = max(len(value.shape) for value in values)
        wide = [self.widened(value, rank) for value in values]
        layout = self.common_layout(wide, rank)
        tensors = [self.tensor(value, layout if value.shape else ()) for value in wide]
        shape = np.broadcast_shapes(*(value.shape for value in wide))
        stored = [shape[axis] for axis in layout]
        kind = self.dtype(values[-1]) if dtype is None else dtype
        if rank <= _LARGEST_RANK:
            return Laid(shape, {layout: self.call(op, tensors, stored, kind)})
        # A scalar's tensor has one axis at most, and goes with any rank.
        groups = _merged_axes([shape for shape in map(self.graph.shape, tensors) if len(shape) == rank])
        if len(groups) > _LARGEST_RANK:
            raise ArtifactError(f"broadcasting over {rank} dimensions", hint="use at most 4 dimensions")
        narrow = [self._merge(tensor, groups) for tensor in tensors]
        merged = self.call(op, narrow, [math.prod(stored[axis] for axis in group) for group in groups], kind)
        return Laid(shape, {layout: self.reshape(merged, stored)})

    def _merge(self, tensor: int, groups: Sequence[Sequence[int]]) -> int:
        shape = self.graph.shape(tensor)
        if len(shape) < sum(map(len, groups)):
            return tensor
        return self.reshape(tensor, [math.prod(shape[axis] for axis in group) for group in groups])

    def _in_layout(self, laid: Laid, wanted: Layout) -> int | Array:
        held = laid.tensors[laid.first]
        order = [laid.first.index(axis) for axis in wanted]
        return self.transpose(held, order) if isinstance(held, int) else np.transpose(held, order)


def _merged_axes(shapes: Sequence[Shape]) -> list[list[int]]:
    """Neighbouring axes along which every operand is either whole or 1 may be walked as one."""
    groups: list[list[int]] = [[]]
    last: int | None = None
    for axis, size in enumerate(np.broadcast_shapes(*shapes)):
        if size != 1:
            if last is not None and any((shape[last] == 1) != (shape[axis] == 1) for shape in shapes):
                groups.append([])
            last = axis
        groups[-1].append(axis)
    return groups
