"""Lowerings of normalisations: means, variances and an affine map, in primitives."""

import math
from collections.abc import Sequence

import onnx

from models.build.batch_norm import normalised_by
from models.build.graph import WorkingGraph, attribute
from models.build.lowering import fixed_sizes, lowering, optional_input

__all__: list[str] = []


@lowering("BatchNormalization")
def _batch_normalization(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """With its running statistics as they are, in training too, unless it is in training mode."""
    if attribute(node, "training_mode", 0):
        return None
    return normalised_by(graph, node.input, attribute(node, "epsilon", 1e-5))


@lowering("InstanceNormalization")
def _instance_normalization(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """Ulyanov, Vedaldi, Lempitsky: Instance normalization (2016)."""
    x, scale, bias = node.input
    axes = range(2, len(graph.shape(x)))
    plain = _normalised(graph, x, axes, attribute(node, "epsilon", 1e-5))
    constants = [graph.constants.get(name) for name in (scale, bias)]
    if all(it is not None and (it == want).all() for it, want in zip(constants, (1, 0), strict=True)):
        return plain  # an exporter's way of writing a group normalisation
    return _affine(graph, plain, scale, bias, rank=2 + len(axes))


@lowering("GroupNormalization")
def _group_normalization(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """Wu, He: Group normalization (2018)."""
    x, scale, bias = node.input
    channels, *sizes = fixed_sizes(graph, node, x, 1)
    groups = int(attribute(node, "num_groups"))
    flat = graph.op("Reshape", x, graph.integers(0, groups, channels // groups * math.prod(sizes, start=1)))
    normal = _normalised(graph, flat, [2], attribute(node, "epsilon", 1e-5))
    per_group = fixed_sizes(graph, node, scale) == [groups] != [channels]
    if per_group:  # operator set 18; since 21 it is one number per channel
        normal = _affine(graph, normal, scale, bias, rank=3)
    back = graph.op("Reshape", normal, graph.integers(0, channels, *sizes))
    return back if per_group else _affine(graph, back, scale, bias, rank=2 + len(sizes))


@lowering("LayerNormalization")
def _layer_normalization(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """Ba, Kiros, Hinton: Layer normalization (2016)."""
    rank = len(graph.shape(node.input[0]))
    axes = range(int(attribute(node, "axis", -1)) % rank, rank)
    normal = _normalised(graph, str(node.input[0]), axes, attribute(node, "epsilon", 1e-5))
    scaled = graph.op("Mul", normal, node.input[1])
    bias = optional_input(node, 2)
    return graph.op("Add", scaled, bias) if bias else scaled


def _normalised(graph: WorkingGraph, x: str, axes: Sequence[int], epsilon: float) -> str:
    over = graph.integers(*axes)
    centred = graph.op("Sub", x, graph.op("ReduceMean", x, over, keepdims=1))
    variance = graph.op("ReduceMean", graph.op("Mul", centred, centred), over, keepdims=1)
    return graph.op("Div", centred, graph.op("Sqrt", graph.op("Add", variance, graph.constant(epsilon))))


def _affine(graph: WorkingGraph, x: str, factor: str, offset: str, *, rank: int | None = None) -> str:
    """``x * factor + offset``, one number of each per channel (dimension 1)."""
    rank = len(graph.shape(x)) if rank is None else rank
    channel = graph.integers(1, -1, *[1] * (rank - 2))
    factor, offset = (graph.op("Reshape", value, channel) for value in (factor, offset))
    return graph.op("Add", graph.op("Mul", x, factor), offset)
