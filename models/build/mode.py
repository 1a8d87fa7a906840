"""The two modes of a model: some layers do one thing while it trains and another while it infers.

Lowering leaves such layers as they are, in the form that ONNX gives them in training mode; here they become
primitives, once for either mode.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx

from models.build import batch_norm, dropout
from models.build.graph import WorkingGraph

__all__ = ["MODES", "in_mode"]

Mode: TypeAlias = Callable[[WorkingGraph, onnx.NodeProto, bool], tuple[str, ...]]
"""``mode(graph, node, training)`` adds nodes and returns the values that stand for the node's outputs."""

MODES: Mapping[str, Mode] = {
    "BatchNormalization": batch_norm.in_mode,
    "Dropout": dropout.in_mode,
}


def in_mode(
    graph: WorkingGraph, outputs: Sequence[str], *, training: bool
) -> tuple[WorkingGraph, tuple[str, ...]]:
    """A copy of a lowered graph as it trains, or as it infers, and what ``outputs`` have become in it.

    A graph that trains may have the inputs ``sample_weight`` and ``seed`` besides.

    Raises:
        ArtifactError: a layer whose batch cannot be told from its other dimensions; the node is named.
    """
    twin = graph.copy()
    if not any(node.op_type in MODES for node in twin.nodes):
        return twin, tuple(outputs)
    replaced: dict[str, str] = {}
    for node in twin.take_nodes():
        node.input[:] = [replaced.get(name, name) for name in node.input]
        mode = MODES.get(node.op_type)
        if mode is None:
            twin.nodes.append(node)
            continue
        for old, new in zip(node.output, mode(twin, node, training), strict=False):
            twin.stands_for(new, old)
            replaced[old] = new
    values = tuple(replaced.get(name, name) for name in outputs)
    twin.prune(*values)
    twin.infer()
    return twin, values
