"""Sums, means, extremes, softmax, and picking by index."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_protocol.errors import ArtifactError
from models.build.tflite.attributes import integer
from models.build.tflite.replay import TRANSLATIONS, Laid, Replay, Translation, Value, translation
from models.build.tflite.schema import TENSOR_TYPES
from models.runtime.onnx_reader import Node

__all__: list[str] = []

# TFLite adds up naively in float32: a sum over 25,000 values was off by 2e-4, axis after axis by 6e-7.
_LARGEST_SUM = 1024


def _reduction(op: str) -> Translation:
    def reduce(replay: Replay, node: Node, x: Value, axes: Value | None = None) -> Value:
        rank = len(x.shape)
        if axes is not None and not isinstance(axes, np.ndarray):
            raise ArtifactError("its axes are computed", hint="export the model with constant axes")
        if axes is None or axes.size == 0:
            if integer(node, "noop_with_empty_axes", 0):
                return x
            over = list(range(rank))
        else:
            over = sorted(int(axis) % rank for axis in axes.reshape(-1))
        return _reduced(replay, op, x, over, keep=bool(integer(node, "keepdims", 1)))

    return reduce


TRANSLATIONS["ReduceMax"] = _reduction("REDUCE_MAX")
TRANSLATIONS["ReduceMean"] = _reduction("MEAN")
TRANSLATIONS["ReduceMin"] = _reduction("REDUCE_MIN")
TRANSLATIONS["ReduceSum"] = _reduction("SUM")


@translation("GlobalAveragePool")
def _global_average_pool(replay: Replay, node: Node, x: Value) -> Value:
    return _reduced(replay, "MEAN", x, range(2, len(x.shape)), keep=True)


@translation("Softmax")
def _softmax(replay: Replay, node: Node, x: Value) -> Value:
    return _along_last(replay, "SOFTMAX", x, integer(node, "axis", -1), beta=1)


@translation("LogSoftmax")
def _log_softmax(replay: Replay, node: Node, x: Value) -> Value:
    return _along_last(replay, "LOG_SOFTMAX", x, integer(node, "axis", -1))


@translation("ArgMax")
def _argmax(replay: Replay, node: Node, x: Value) -> Value:
    if integer(node, "select_last_index", 0):
        raise ArtifactError("ArgMax with select_last_index")
    axis = integer(node, "axis", 0) % len(x.shape)
    left = [dim for place, dim in enumerate(x.shape) if place != axis]
    best = replay.call(
        "ARG_MAX",
        [replay.tensor(x), replay.graph.constant(np.array(axis, np.int32))],
        left,
        np.int32,
        output_type=TENSOR_TYPES[np.dtype(np.int32)],
    )
    if integer(node, "keepdims", 1):
        best = replay.reshape(best, [1 if place == axis else dim for place, dim in enumerate(x.shape)])
    return replay.new(best)


@translation("OneHot")
def _one_hot(replay: Replay, node: Node, indices: Value, depth: Value, values: Value) -> Value:
    if not isinstance(depth, np.ndarray) or not isinstance(values, np.ndarray):
        raise ArtifactError("its depth or its values are computed")
    if integer(node, "axis", -1) not in (-1, len(indices.shape)):
        raise ArtifactError("OneHot along another axis than the last")
    count = int(depth.reshape(()))
    fixed = [np.array(count, np.int32), values[1], values[0]]
    tensors = [replay.tensor(indices), *(replay.graph.constant(np.asarray(array)) for array in fixed)]
    return replay.new(replay.call("ONE_HOT", tensors, [*indices.shape, count], replay.dtype(values), axis=-1))


def _reduced(replay: Replay, op: str, x: Value, axes: Sequence[int], *, keep: bool) -> Laid:
    laid = replay.laid(x)
    layout, tensor = laid.first, replay.tensor(laid, laid.first)
    places = [place for place, axis in enumerate(layout) if axis in axes]
    sizes = [1 if axis in axes else laid.shape[axis] for axis in layout]
    left = [axis for axis in range(len(layout)) if axis not in axes]
    stored = sizes if keep else [laid.shape[axis] for axis in layout if axis in left]
    counted = math.prod(laid.shape[axis] for axis in axes)
    if len(places) > 1 and op in ("SUM", "MEAN") and counted > _LARGEST_SUM:
        for place in reversed(places[1:]):
            shape = list(replay.graph.shape(tensor))
            shape[place] = 1
            tensor = _reduce(replay, op, tensor, [place], shape, keep=True)
    if places:
        tensor = _reduce(replay, op, tensor, places, stored, keep=keep)
    if keep:
        return Laid([1 if axis in axes else dim for axis, dim in enumerate(laid.shape)], {layout: tensor})
    return Laid(
        [laid.shape[axis] for axis in left],
        {tuple(left.index(axis) for axis in layout if axis in left): tensor},
    )


def _reduce(
    replay: Replay, op: str, tensor: int, places: Sequence[int], shape: Sequence[int], *, keep: bool
) -> int:
    dtype: Any = replay.graph.dtype(tensor)
    return replay.call(op, [tensor, replay.graph.integers(*places)], shape, dtype, keep_dims=keep)


def _along_last(replay: Replay, op: str, x: Value, axis: int, **options: int) -> Laid:
    """TFLite goes along the axis that is stored last."""
    laid = replay.laid(x)
    axis %= len(laid.shape)
    layout = laid.first
    if layout[-1] != axis:
        layout = (*(other for other in layout if other != axis), axis)
    stored = [laid.shape[other] for other in layout]
    return Laid(laid.shape, {layout: replay.call(op, [replay.tensor(laid, layout)], stored, **options)})
