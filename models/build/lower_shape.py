"""Lowerings of operators that move or gather numbers, and of composite reductions."""

import numpy as np
import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import UnknownShape, WorkingGraph, attribute, described
from models.build.lowering import lowering, optional_input

__all__: list[str] = []

_TO_THE_END = (1 << 31) - 1


@lowering("Split")
def _split(graph: WorkingGraph, node: onnx.NodeProto) -> tuple[str, ...]:
    x = str(node.input[0])
    axis = int(attribute(node, "axis", 0)) % len(graph.shape(x))
    size = graph.shape(x)[axis]
    if not isinstance(size, int):
        raise ArtifactError(f"{described(node)} splits the batch", hint="split another dimension")
    given = optional_input(node, 1)
    if given is None:
        part = -(-size // len(node.output))
        sizes = [min(part, size - part * place) for place in range(len(node.output))]
    elif given in graph.constants:
        sizes = [int(entry) for entry in graph.constants[given]]
    else:
        raise ArtifactError(f"{described(node)}: its sizes are computed", hint="split into fixed sizes")
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return tuple(_cut(graph, x, axis, start, size) for start, size in zip(starts, sizes, strict=True))


@lowering("SequenceAt")
def _sequence_at(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """A piece of what a SplitToSequence makes, which is how PyTorch exports ``chunk`` and ``split``."""
    split, place = graph.producer(str(node.input[0])), graph.constants.get(node.input[1])
    if split is None or split.op_type != "SplitToSequence" or place is None:
        raise ArtifactError(
            f"{described(node)} picks from a sequence of tensors", hint="split into a fixed number of pieces"
        )
    x, given = str(split.input[0]), optional_input(split, 1)
    axis = int(attribute(split, "axis", 0)) % len(graph.shape(x))
    size, sizes = graph.shape(x)[axis], graph.constants.get(given) if given is not None else np.array(1)
    if not isinstance(size, int) or sizes is None:
        raise ArtifactError(f"{described(split)} makes pieces of any size", hint="split into fixed sizes")
    ends = np.cumsum(sizes) if sizes.ndim else np.minimum(np.arange(0, size, int(sizes)) + int(sizes), size)
    stop, start = int(ends[int(place)]), int(ends[int(place) - 1]) if int(place) % len(ends) else 0
    piece = _cut(graph, x, axis, start, stop - start)
    dropped = given is None and not attribute(split, "keepdims", 1)
    return graph.op("Squeeze", piece, graph.integers(axis)) if dropped else piece


def _cut(graph: WorkingGraph, x: str, axis: int, start: int, size: int) -> str:
    return graph.op("Slice", x, *(graph.integers(number) for number in (start, start + size, axis)))


@lowering("Slice")
def _slice(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """One that keeps everything is none; inference would forget the batch over it."""
    x, shape = str(node.input[0]), graph.shape(node.input[0])
    names = [optional_input(node, index) for index in range(1, 5)]
    if any(name is not None and name not in graph.constants for name in names):
        return None
    starts, stops, axes, steps = (None if name is None else graph.constants[name] for name in names)
    if starts is None or stops is None or (steps is not None and (steps != 1).any()):
        return None
    places = range(len(starts)) if axes is None else axes.tolist()
    for axis, start, stop in zip(places, starts.tolist(), stops.tolist(), strict=True):
        size = shape[axis]
        if start != 0 or stop < (size if isinstance(size, int) else _TO_THE_END):
            return None
    return x


@lowering("Gather")
def _gather(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """Fixed positions that lie in a row are a slice."""
    x, indices = (str(name) for name in node.input)
    places = graph.constants.get(indices)
    if places is None or places.ndim > 1 or not places.size:
        return None
    axis = int(attribute(node, "axis", 0)) % len(graph.shape(x))
    size = graph.shape(x)[axis]
    if not isinstance(size, int):
        return None
    first = int(places.reshape(-1)[0]) % size
    if not np.array_equal(places.reshape(-1) % size, np.arange(first, first + places.size)):
        return None
    cut = _cut(graph, x, axis, first, places.size)
    return cut if places.ndim else graph.op("Squeeze", cut, graph.integers(axis))


@lowering("GatherElements")
def _gather_elements(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """Of constants, as exporters spell the positions of tokens; a later pass may know more of them."""
    if any(name not in graph.constants for name in node.input):
        raise UnknownShape(
            f"{described(node)} picks single entries by numbers that the graph computes",
            hint="pick whole rows (Gather), or multiply by a one-hot mask and sum",
        )
    x, places = (graph.constants[name] for name in node.input)
    axis = int(attribute(node, "axis", 0)) % x.ndim
    part = tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(places.shape))
    picked = np.take_along_axis(x[part], places, axis)
    return graph.constant(picked, picked.dtype)


@lowering("ReduceMin")
def _reduce_min(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    return graph.op("Neg", _reduced(graph, node, "ReduceMax", graph.op("Neg", node.input[0])))


@lowering("ReduceL1")
def _reduce_l1(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    return _reduced(graph, node, "ReduceSum", graph.op("Abs", node.input[0]))


@lowering("ReduceSumSquare")
def _reduce_sum_square(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    return _reduced(graph, node, "ReduceSum", graph.op("Mul", node.input[0], node.input[0]))


@lowering("ReduceL2")
def _reduce_l2(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    squares = graph.op("Mul", node.input[0], node.input[0])
    return graph.op("Sqrt", _reduced(graph, node, "ReduceSum", squares))


def _reduced(graph: WorkingGraph, node: onnx.NodeProto, op: str, value: str) -> str:
    keep = {key: attribute(node, key, default) for key, default in _REDUCTION.items()}
    return graph.op(op, value, *node.input[1:], **keep)


_REDUCTION = {"keepdims": 1, "noop_with_empty_axes": 0}
