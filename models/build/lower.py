"""Composite and cosmetic operators become primitives, so that they need no gradient rule and no kernel."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from fl_protocol.errors import ArtifactError
from models.build import (  # noqa: F401 - importing them enters their lowerings
    lower_activation,
    lower_einsum,
    lower_normalisation,
    lower_recurrent,
    lower_reshape,
    lower_shape,
    lower_window,
)
from models.build.folding import folded
from models.build.graph import UnknownShape, WorkingGraph, attribute, described
from models.build.lowering import LOWERINGS, lowering

__all__ = ["LOWERINGS", "lower"]

_MAX_PASSES = 16
_NEWER = frozenset({"Gelu", "GroupNormalization"})
"""Operators that came with operator sets after ours; every one of them has a lowering."""


def lower(graph: WorkingGraph, output: str) -> str:
    """Rewrite the graph until nothing changes; returns the value that ``output`` has become.

    Several passes, because a shape known at last may allow the next rewriting. What a layer does in training
    only (``models.build.mode``) is left as it is.

    Raises:
        ArtifactError: an operator is used in a way that training cannot follow.
    """
    waiting: list[UnknownShape] = []
    for _ in range(_MAX_PASSES):
        graph.infer(strict=not any(node.op_type in _NEWER for node in graph.nodes))
        before = [node.SerializeToString() for node in graph.nodes], [str(error) for error in waiting]
        output, waiting = _one_pass(graph, output)
        # A pass that changes no node may still have found a shape that another node waits for.
        if before == ([node.SerializeToString() for node in graph.nodes], [str(error) for error in waiting]):
            break
    if waiting:
        raise waiting[0]
    return output


def _one_pass(graph: WorkingGraph, output: str) -> tuple[str, list[UnknownShape]]:
    """Rewrite every node once; what waits for a shape stays as it is, its error is returned."""
    nodes = graph.take_nodes()
    replaced: dict[str, str] = {}
    waiting: list[UnknownShape] = []
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = replaced.get(name, name)
        rewrite, count = LOWERINGS.get(node.op_type), len(graph.nodes)
        value: str | tuple[str, ...] | None = folded(graph, node)
        try:
            if value is None and rewrite is not None:
                value = rewrite(graph, node)
        except UnknownShape as error:
            graph.take_back(count)
            waiting.append(error)
            value = None
        if value is None:
            graph.nodes.append(node)
            continue
        values = (value,) if isinstance(value, str) else value
        for old, new in zip(node.output, values, strict=False):
            if old:
                graph.stands_for(new, old)
                replaced[old] = new
        extra = [name for name in node.output[len(values) :] if name]
        if any(name in other.input for name in extra for other in nodes) or output in extra:
            raise ArtifactError(
                f"{described(node)}: its further output {extra[0]!r} is used",
                hint="export the model in evaluation mode",
            )
    return replaced.get(output, output), waiting


@lowering("Constant")
def _constant(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    entry = node.attribute[0]
    read: dict[str, Callable[[], Any]] = {
        "value": lambda: numpy_helper.to_array(entry.t),
        "value_float": lambda: np.float32(entry.f),
        "value_floats": lambda: np.array(list(entry.floats), np.float32),
        "value_int": lambda: np.int64(entry.i),
        "value_ints": lambda: np.array(list(entry.ints), np.int64),
    }
    if entry.name not in read:
        raise ArtifactError(f"{described(node)} of kind {entry.name!r} has no place in training")
    value = np.asarray(read[entry.name]())
    return graph.constant(value, value.dtype)


@lowering("Identity")
def _identity(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    return str(node.input[0])


@lowering("Cast")
def _cast(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    return str(node.input[0]) if graph.types.get(node.input[0]) == attribute(node, "to") else None


@lowering("Flatten")
def _flatten(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    shape = graph.shape(node.input[0])
    axis = attribute(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    features = [dim for dim in shape[1:] if isinstance(dim, int)]
    if axis != 1 or len(features) < len(shape) - 1:
        raise ArtifactError(
            f"{described(node)} at axis {axis} of {list(shape)} mixes the rows of the batch",
            hint="flatten from axis 1 on",
        )
    return graph.op("Reshape", node.input[0], graph.integers(0, math.prod(features)))
