"""Composite and cosmetic operators become primitives, so that they need no gradient rule and no kernel."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from fl_protocol.errors import ArtifactError
from models.build.graph import BATCH, WorkingGraph, attribute, described

__all__ = ["LOWERINGS", "Lowering", "lower"]

Lowering: TypeAlias = Callable[[WorkingGraph, onnx.NodeProto], str | None]
"""Returns the value that stands for the node's first output, or ``None`` to keep the node as it is."""

LOWERINGS: dict[str, Lowering] = {}
_MAX_PASSES = 16


def lowering(op: str) -> Callable[[Lowering], Lowering]:
    """Enter a function into the table."""

    def enter(function: Lowering) -> Lowering:
        LOWERINGS[op] = function
        return function

    return enter


def lower(graph: WorkingGraph, output: str) -> str:
    """Rewrite the graph until nothing changes; returns the value that ``output`` has become.

    Several passes, because a shape known at last may allow the next rewriting.

    Raises:
        ArtifactError: an operator is used in a way that training cannot follow.
    """
    for _ in range(_MAX_PASSES):
        graph.infer()
        before = [node.SerializeToString() for node in graph.nodes]
        output = _one_pass(graph, output)
        if [node.SerializeToString() for node in graph.nodes] == before:
            break
    return output


def _one_pass(graph: WorkingGraph, output: str) -> str:
    nodes = graph.take_nodes()
    replaced: dict[str, str] = {}
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = replaced.get(name, name)
        rewrite = LOWERINGS.get(node.op_type)
        value = rewrite(graph, node) if rewrite is not None else None
        if value is None:
            graph.nodes.append(node)
            continue
        replaced[node.output[0]] = value
        extra = [name for name in node.output[1:] if name]
        if any(name in other.input for name in extra for other in nodes) or output in extra:
            raise ArtifactError(
                f"{described(node)}: its further output {extra[0]!r} is used",
                hint="export the model in evaluation mode",
            )
    return replaced.get(output, output)


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


@lowering("Dropout")
def _dropout(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    mode = node.input[2] if len(node.input) > 2 else ""
    if mode and (mode not in graph.constants or graph.constants[mode].any()):
        raise ArtifactError(
            f"{described(node)} is in training mode",
            hint="export the model in evaluation mode: net.eval()",
        )
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


@lowering("Reshape")
def _reshape(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """Write the target so that its shape is known: 0 for the batch, and every other size spelt out."""
    source = graph.known_shape(node.input[0])
    if source is None or not source or source[0] != BATCH:
        return None
    target = _target(graph, node)
    features = [dim for dim in source[1:] if isinstance(dim, int)]
    if target is None or len(features) != len(source) - 1 or not target or target[0] not in (0, -1):
        return None
    rest = [features[axis] if dim == 0 else dim for axis, dim in enumerate(target[1:])]
    count, known = math.prod(features), [dim for dim in rest if dim != -1]
    size = math.prod(known)
    if len(known) < len(rest):
        if target[0] == -1 or size == 0 or count % size:
            return None
        rest = [count // size if dim == -1 else dim for dim in rest]
    elif size != count:
        return None
    wanted = graph.integers(0, *rest)
    return None if wanted == node.input[1] else graph.op("Reshape", node.input[0], wanted)


def _target(graph: WorkingGraph, node: onnx.NodeProto) -> list[int] | None:
    if node.input[1] in graph.constants and not attribute(node, "allowzero", 0):
        return [int(dim) for dim in graph.constants[node.input[1]]]
    # A target computed from shapes: inference has followed it where it could.
    inferred = graph.partial_shape(node.output[0])
    if not inferred or inferred[0] != BATCH or inferred.count(None) > 1 or BATCH in inferred[1:]:
        return None
    return [0, *(dim if isinstance(dim, int) else -1 for dim in inferred[1:])]
