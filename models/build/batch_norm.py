"""Batch normalisation: with the statistics of the batch while it trains, with running ones while it infers.

Ioffe, Szegedy: Batch normalization (2015). A row counts as much as it weighs: one of weight 0, which only
fills up a batch, changes neither the statistics nor any other row.
"""

import math
from collections.abc import Sequence

import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import BATCH, WorkingGraph, attribute, described
from models.build.lowering import fixed_sizes

__all__ = ["in_mode", "normalised_by"]

_TINY = 1e-12
_MOMENTUM, _EPSILON = 0.9, 1e-5


def in_mode(graph: WorkingGraph, node: onnx.NodeProto, training: bool) -> tuple[str, ...]:
    """The result, the running mean and the running variance after it: float[channels] each.

    A variance is taken for 0 at least where it is used: one that was averaged over devices, or that noise
    was added to, may lie below.
    """
    if training:
        return _trained(graph, node)
    *others, mean, variance = node.input
    floored = graph.op("Max", variance, graph.constant(0))
    return (
        normalised_by(graph, (*others, mean, floored), attribute(node, "epsilon", _EPSILON)),
        mean,
        variance,
    )


def normalised_by(graph: WorkingGraph, values: Sequence[str], epsilon: float) -> str:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias``.

    ``values`` are the inputs of the ONNX operator: x, and float[channels] (dimension 1 of x) each of scale,
    bias, mean, variance.
    """
    x, scale, bias, mean, variance = values
    factor = graph.op("Div", scale, graph.op("Sqrt", graph.op("Add", variance, graph.constant(epsilon))))
    offset = graph.op("Sub", bias, graph.op("Mul", mean, factor))
    factor, offset = (_per_channel(graph, x, value) for value in (factor, offset))
    return graph.op("Add", graph.op("Mul", x, factor), offset)


def _trained(graph: WorkingGraph, node: onnx.NodeProto) -> tuple[str, ...]:
    x, scale, bias, old_mean, old_variance = node.input
    if graph.shape(x)[0] != BATCH:
        raise ArtifactError(
            f"{described(node)} normalises {list(graph.shape(x))}, whose first dimension is not the batch "
            "alone: rows of weight 0 could not be left out of its statistics",
            hint="build with --batch-norm frozen, or use a group normalisation in its place",
        )
    rank, positions = len(graph.shape(x)), math.prod(fixed_sizes(graph, node, x, 2), start=1)
    rows = graph.input("sample_weight", [BATCH])
    total = graph.op("ReduceSum", rows, keepdims=0)
    share = graph.op("Div", rows, graph.op("Max", total, graph.constant(_TINY)))
    share = graph.op("Unsqueeze", share, graph.integers(1))

    mean = _over_rows(graph, x, rank, share)
    centred = graph.op("Sub", x, _per_channel(graph, x, mean))
    variance = _over_rows(graph, graph.op("Mul", centred, centred), rank, share)
    spread = graph.op("Add", variance, graph.constant(attribute(node, "epsilon", _EPSILON)))
    factor = graph.op("Div", scale, graph.op("Sqrt", spread))
    scaled = graph.op("Mul", centred, _per_channel(graph, x, factor))
    result = graph.op("Add", scaled, _per_channel(graph, x, bias))

    # As PyTorch: the unbiased variance is kept. One value has none, and there is nothing to learn of it.
    one = graph.constant(1)
    count = graph.op("Mul", total, graph.constant(positions))
    unbiased = graph.op("Div", count, graph.op("Max", graph.op("Sub", count, one), one))
    rate = graph.constant(1 - attribute(node, "momentum", _MOMENTUM))
    rate = graph.op("Where", graph.op("Greater", count, one), rate, graph.constant(0))
    return (
        result,
        _moved(graph, old_mean, mean, rate),
        _moved(graph, old_variance, graph.op("Mul", variance, unbiased), rate),
    )


def _over_rows(graph: WorkingGraph, value: str, rank: int, share: str) -> str:
    """The mean of each channel, float[channels], where each row counts by its share.

    First over a row's positions and then over the rows: some runtimes add up long sums carelessly.
    """
    if rank > 2:
        value = graph.op("ReduceMean", value, graph.integers(*range(2, rank)), keepdims=0)
    return graph.op("ReduceSum", graph.op("Mul", value, share), graph.integers(0), keepdims=0)


def _per_channel(graph: WorkingGraph, x: str, value: str) -> str:
    return graph.op("Reshape", value, graph.integers(1, -1, *[1] * (len(graph.shape(x)) - 2)))


def _moved(graph: WorkingGraph, old: str, new: str, rate: str) -> str:
    return graph.op("Add", old, graph.op("Mul", rate, graph.op("Sub", new, old)))
