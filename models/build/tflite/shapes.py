"""Reshaping, cutting, joining and picking, with layouts kept where they can be."""

import math
from collections.abc import Sequence

import numpy as np

from fl_protocol.errors import ArtifactError
from models.build.tflite.attributes import integer, integers, word
from models.build.tflite.replay import Laid, Layout, Replay, Value, translation
from models.runtime.onnx_reader import Node

__all__ = ["fixed", "padded"]

_LARGEST_PAD_RANK = 4
_SHORT = 4


def fixed(value: Value | None, what: str) -> list[int]:
    """Integers that must be known now."""
    if not isinstance(value, np.ndarray):
        raise ArtifactError(f"its {what} is computed", hint="export the model with fixed sizes")
    return [int(entry) for entry in value.reshape(-1)]


@translation("Shape")
def _shape(replay: Replay, node: Node, x: Value) -> Value:
    end = integer(node, "end", len(x.shape))
    return np.array(x.shape[integer(node, "start", 0) : end], np.int64)


@translation("Size")
def _size(replay: Replay, node: Node, x: Value) -> Value:
    return np.array(math.prod(x.shape), np.int64)


@translation("Reshape")
def _reshape(replay: Replay, node: Node, x: Value, shape: Value) -> Value:
    dims = fixed(shape, "shape")
    if not integer(node, "allowzero", 0):
        dims = [x.shape[axis] if dim == 0 else dim for axis, dim in enumerate(dims)]
    if -1 in dims:
        dims[dims.index(-1)] = math.prod(x.shape) // -math.prod(dims)
    return _reshaped(replay, x, dims)


@translation("Flatten")
def _flatten(replay: Replay, node: Node, x: Value) -> Value:
    axis = integer(node, "axis", 1) % len(x.shape)
    return _reshaped(replay, x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@translation("Squeeze")
def _squeeze(replay: Replay, node: Node, x: Value, axes: Value | None = None) -> Value:
    rank = len(x.shape)
    dropped = (
        [axis for axis, dim in enumerate(x.shape) if dim == 1]
        if axes is None
        else [axis % rank for axis in fixed(axes, "axes")]
    )
    left = [axis for axis in range(rank) if axis not in dropped]
    laid = replay.laid(x)
    layout = tuple(left.index(axis) for axis in laid.first if axis in left)
    tensor = replay.reshape(
        replay.tensor(laid, laid.first), [laid.shape[axis] for axis in laid.first if axis in left]
    )
    return Laid([laid.shape[axis] for axis in left], {layout: tensor})


@translation("Unsqueeze")
def _unsqueeze(replay: Replay, node: Node, x: Value, axes: Value) -> Value:
    laid = replay.laid(x)
    rank = len(laid.shape) + len(fixed(axes, "axes"))
    new = sorted(axis % rank for axis in fixed(axes, "axes"))
    old = [axis for axis in range(rank) if axis not in new]
    shape = [1] * rank
    for axis, dim in zip(old, laid.shape, strict=True):
        shape[axis] = dim
    in_order = laid.first == tuple(range(len(laid.shape)))
    # Where the value is stored in another order the new axes go in front, so that it stays so.
    layout = tuple(range(rank)) if in_order else (*new, *(old[axis] for axis in laid.first))
    tensor = replay.reshape(replay.tensor(laid, laid.first), [shape[axis] for axis in layout])
    return Laid(shape, {layout: tensor})


@translation("Transpose")
def _transpose(replay: Replay, node: Node, x: Value) -> Value:
    laid = replay.laid(x)
    order = integers(node, "perm", range(len(laid.shape))[::-1])
    return Laid(
        [laid.shape[axis] for axis in order],
        {tuple(order.index(axis) for axis in layout): held for layout, held in laid.tensors.items()},
    )


@translation("Expand")
def _expand(replay: Replay, node: Node, x: Value, shape: Value) -> Value:
    wanted = fixed(shape, "shape")
    rank = max(len(x.shape), len(wanted))
    laid = replay.widened(x, rank) if x.shape else replay.new(replay.reshape(replay.tensor(x), [1] * rank))
    full = np.broadcast_shapes(laid.shape, tuple(wanted))
    if full == laid.shape:
        return laid
    stored = [full[axis] for axis in laid.first]
    tensors = [replay.tensor(laid, laid.first), replay.graph.integers(*stored)]
    wide = replay.call("BROADCAST_TO", tensors, stored, replay.dtype(laid), version=2)
    return Laid(full, {laid.first: wide})


@translation("Concat")
def _concat(replay: Replay, node: Node, *inputs: Value) -> Value:
    laid = [replay.laid(value) for value in inputs]
    rank = len(laid[0].shape)
    axis = integer(node, "axis", 0) % rank
    layout = replay.common_layout(laid, rank)
    shape = list(laid[0].shape)
    shape[axis] = sum(value.shape[axis] for value in laid)
    joined = replay.call(
        "CONCATENATION",
        [replay.tensor(value, layout) for value in laid],
        [shape[place] for place in layout],
        replay.dtype(laid[0]),
        axis=layout.index(axis),
    )
    return Laid(shape, {layout: joined})


@translation("Split")
def _split(replay: Replay, node: Node, x: Value, sizes: Value | None = None) -> list[Value]:
    laid = replay.laid(x)
    axis, count = integer(node, "axis", 0) % len(laid.shape), len(node.outputs)
    parts = [-(-laid.shape[axis] // count)] * count if sizes is None else fixed(sizes, "split")
    pieces: list[Value] = []
    at = 0
    for size in parts:
        start, stop = [0] * len(laid.shape), list(laid.shape)
        start[axis], stop[axis] = at, min(at + size, laid.shape[axis])
        at += size
        pieces.append(_cut(replay, laid, start, stop))
    return pieces


@translation("Slice")
def _slice(replay: Replay, node: Node, x: Value, *bounds: Value | None) -> Value:
    starts, ends, axes, steps = (*bounds, None, None)[:4]
    laid = replay.laid(x)
    rank = len(laid.shape)
    froms, tos = fixed(starts, "starts"), fixed(ends, "ends")
    over = list(range(len(froms))) if axes is None else [axis % rank for axis in fixed(axes, "axes")]
    by = [1] * len(froms) if steps is None else fixed(steps, "steps")
    start, stop, step = [0] * rank, list(laid.shape), [1] * rank
    backwards = []
    for axis, first, last, stride in zip(over, froms, tos, by, strict=True):
        if stride > 0:
            start[axis], stop[axis], _ = slice(first, last, stride).indices(laid.shape[axis])
            stop[axis], step[axis] = max(stop[axis], start[axis]), stride
        elif range(laid.shape[axis])[first:last:stride] == range(laid.shape[axis])[::-1]:
            backwards.append(axis)
        else:
            raise ArtifactError("a slice backwards over a part of an axis")
    for axis in backwards:
        laid = _reversed(replay, laid, axis)
    if any(stride != 1 for stride in step):
        return _strided(replay, laid, start, stop, step)
    whole = start == [0] * rank and tuple(stop) == laid.shape
    return laid if whole else _cut(replay, laid, start, stop)


@translation("Pad")
def _pad(replay: Replay, node: Node, x: Value, *given: Value | None) -> Value:
    pads, fill, axes = (*given, None, None)[:3]
    if word(node, "mode", "constant") != "constant":
        raise ArtifactError("padding by reflection", hint="pad with a constant")
    if fill is not None and not isinstance(fill, np.ndarray):
        raise ArtifactError("its fill value is computed")
    laid = replay.laid(x)
    rank, amounts = len(laid.shape), fixed(pads, "pads")
    over = list(range(rank)) if axes is None else [axis % rank for axis in fixed(axes, "axes")]
    margins = [(0, 0)] * rank
    for place, axis in enumerate(over):
        margins[axis] = (amounts[place], amounts[len(over) + place])
    if any(amount < 0 for margin in margins for amount in margin):
        start = [max(-before, 0) for before, _ in margins]
        stop = [dim - max(-after, 0) for dim, (_, after) in zip(laid.shape, margins, strict=True)]
        laid = _cut(replay, laid, start, stop)
        margins = [(max(before, 0), max(after, 0)) for before, after in margins]
    if not any(map(any, margins)):
        return laid
    layout = laid.first
    value = 0.0 if fill is None else float(fill.reshape(()))
    tensor = padded(replay, replay.tensor(laid, layout), [margins[axis] for axis in layout], value)
    return Laid(
        [dim + sum(margin) for dim, margin in zip(laid.shape, margins, strict=True)], {layout: tensor}
    )


@translation("Gather")
def _gather(replay: Replay, node: Node, x: Value, indices: Value) -> Value:
    laid = replay.laid(x)
    axis = integer(node, "axis", 0) % len(laid.shape)
    if isinstance(indices, np.ndarray):
        indices = np.where(indices < 0, indices + laid.shape[axis], indices).astype(np.int32)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        start, stop = [0] * len(laid.shape), list(laid.shape)
        start[axis], stop[axis] = int(indices), int(indices) + 1
        one = _cut(replay, laid, start, stop)
        return _reshaped(replay, one, [dim for place, dim in enumerate(laid.shape) if place != axis])
    shape = [*laid.shape[:axis], *indices.shape, *laid.shape[axis + 1 :]]
    tensors = [replay.tensor(laid), replay.tensor(indices)]
    return replay.new(replay.call("GATHER", tensors, shape, replay.dtype(laid), axis=axis))


@translation("ScatterND")
def _scatter_nd(replay: Replay, node: Node, x: Value, indices: Value, updates: Value) -> Value:
    if not isinstance(x, np.ndarray) or x.any() or word(node, "reduction", "none") != "add":
        raise ArtifactError("scattering into anything but zeros, by adding")
    tensors = [replay.tensor(indices), replay.tensor(updates), replay.graph.integers(*x.shape)]
    return replay.new(replay.call("SCATTER_ND", tensors, x.shape, replay.dtype(updates)))


def padded(replay: Replay, tensor: int, margins: Sequence[tuple[int, int]], fill: float = 0.0) -> int:
    """A tensor with ``margins`` (before, after) around it; PAD itself takes four axes at most."""
    shape = replay.graph.shape(tensor)
    full = [dim + before + after for dim, (before, after) in zip(shape, margins, strict=True)]
    if len(shape) > 1 and margins[-1] == (0, 0) and shape[-1] < _SHORT:
        # Padded a run of the last axis at a time: a few long runs are faster than many short ones.
        *lead, (before, after), _ = margins
        joined = replay.reshape(tensor, (*shape[:-2], shape[-2] * shape[-1]))
        wider = [*lead, (before * shape[-1], after * shape[-1])]
        return replay.reshape(padded(replay, joined, wider, fill), full)
    groups: list[list[int]] = []
    for axis in range(len(shape)):
        if groups and margins[axis] == margins[groups[-1][-1]] == (0, 0):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(shape) <= _LARGEST_PAD_RANK:
        groups = [[axis] for axis in range(len(shape))]
    elif len(groups) > _LARGEST_PAD_RANK:
        raise ArtifactError(f"padding {len(shape)} dimensions", hint="pad at most 4 dimensions")
    narrow = replay.reshape(tensor, [math.prod(shape[axis] for axis in group) for group in groups])
    amounts = np.array([margins[group[0]] for group in groups], np.int32)
    inputs = [narrow, replay.graph.constant(amounts)]
    if fill:
        inputs.append(replay.graph.constant(np.array(fill, np.float32)))
    merged = [math.prod(full[axis] for axis in group) for group in groups]
    dtype = replay.graph.dtype(tensor)
    return replay.reshape(replay.call("PADV2" if fill else "PAD", inputs, merged, dtype), full)


def _reshaped(replay: Replay, value: Value, shape: Sequence[int]) -> Value:
    if tuple(shape) == tuple(value.shape):
        return value
    if math.prod(shape) != math.prod(value.shape):
        raise ArtifactError(f"{list(value.shape)} cannot become {list(shape)}")
    return replay.new(replay.reshape(replay.tensor(value), shape))


def _cut(replay: Replay, laid: Laid, start: Sequence[int], stop: Sequence[int]) -> Laid:
    layout = laid.first
    sizes = [stop[axis] - start[axis] for axis in layout]
    piece = replay.cut(replay.tensor(laid, layout), [start[axis] for axis in layout], sizes)
    return Laid([last - first for first, last in zip(start, stop, strict=True)], {layout: piece})


def _strided(
    replay: Replay, laid: Laid, start: Sequence[int], stop: Sequence[int], step: Sequence[int]
) -> Laid:
    layout: Layout = laid.first
    shape = [len(range(*bounds)) for bounds in zip(start, stop, step, strict=True)]
    bounds = [replay.graph.integers(*(edge[axis] for axis in layout)) for edge in (start, stop, step)]
    cut = replay.call(
        "STRIDED_SLICE",
        [replay.tensor(laid, layout), *bounds],
        [shape[axis] for axis in layout],
        replay.dtype(laid),
    )
    return Laid(shape, {layout: cut})


def _reversed(replay: Replay, laid: Laid, axis: int) -> Laid:
    layout = laid.first
    tensors = [replay.tensor(laid, layout), replay.graph.integers(layout.index(axis))]
    stored = [laid.shape[place] for place in layout]
    return Laid(laid.shape, {layout: replay.call("REVERSE_V2", tensors, stored, replay.dtype(laid))})
