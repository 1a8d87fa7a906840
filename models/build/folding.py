"""Folding: what a forward graph makes of constants and of shapes alone is worked out at the build.

Exporters spell ``[steps, heads * batch, features]`` as a dozen nodes; followed entry by entry, the batch as
a symbol, they become the constant target of one Reshape.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.build.graph import Array, Dim, WorkingGraph, attribute, batch_factor, batch_times
from models.runtime.numpy_ops import KERNELS

__all__ = ["folded"]

_MOST_VALUES = 1 << 16
_MOVING: Mapping[str, int] = MappingProxyType(
    {"Cast": 1, "Gather": 1, "Identity": 1, "Reshape": 1, "Slice": 1, "Squeeze": 1, "Unsqueeze": 1}
)
"""Operators that only move entries, with how many of their inputs hold entries; Concat has any number."""
_ARITHMETIC = ("Add", "Div", "Mod", "Mul", "Sub")
_FAILURES = (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError)
# What a kernel raises on arrays that do not fit; shape inference says later what is wrong.


def folded(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """The constant that a node's output is, or ``None`` where it is none.

    Of integers of which some are known, ``graph.entries`` keeps what is known.
    """
    if len(node.output) != 1 or not node.input:
        return None
    if node.op_type in ("Expand", "ConstantOfShape"):
        _know_expanded(graph, node)
    try:
        if all(name in graph.constants for name in node.input if name):
            return _computed(graph, node)
        entries = _entries(graph, node)
    except _FAILURES:
        return None
    if entries is None:
        return None
    graph.entries[node.output[0]] = entries
    if all(isinstance(entry, int) for entry in entries.reshape(-1)):
        return graph.constant(entries.astype(np.int64), np.int64)
    return None


def _computed(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    kernel = KERNELS.get(node.op_type)
    if kernel is None or sum(graph.constants[name].size for name in node.input if name) > _MOST_VALUES:
        return None
    if (
        node.op_type in ("ConstantOfShape", "Expand")
        and graph.constants[node.input[-1]].prod() > _MOST_VALUES
    ):
        return None
    arrays = [graph.constants[name] if name else None for name in node.input]
    with np.errstate(all="ignore"):
        value = np.asarray(kernel(_attributes(node), *arrays))
    return graph.constant(value, value.dtype) if value.size <= _MOST_VALUES else None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """As the runtime's own reader gives them."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {
        key: numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        for key, value in values.items()
    }


def _entries(graph: WorkingGraph, node: onnx.NodeProto) -> Array | None:
    """The entries of an integer result: object[...] of ``Dim``."""
    op = node.op_type
    if op == "Shape":
        shape = graph.partial_shape(node.input[0])
        if shape is None:
            return None
        return _objects(list(shape)[attribute(node, "start", 0) : attribute(node, "end")])
    holding = len(node.input) if op in ("Concat", *_ARITHMETIC) else _MOVING.get(op, 0)
    known = [_known(graph, name) for name in node.input[:holding]]
    if not known or any(entries is None for entries in known):
        return None
    if op in _ARITHMETIC:
        function = np.frompyfunc(lambda a, b: _calculated(op, a, b), 2, 1)
        return np.asarray(function(*known), object)
    if op in ("Cast", "Identity"):
        return known[0]
    rest = [graph.constants[name] if name else None for name in node.input[holding:]]
    return np.asarray(KERNELS[op](_attributes(node), *known, *rest), object)


def _known(graph: WorkingGraph, name: str) -> Array | None:
    constant = graph.constants.get(name)
    if constant is None:
        return graph.entries.get(name)
    if constant.dtype.kind != "i" or constant.size > _MOST_VALUES:
        return None
    return _objects(constant.tolist())


def _objects(values: Any) -> Array:
    return np.array(values, dtype=object)


def _calculated(op: str, a: Dim, b: Dim) -> Dim:
    """Arithmetic with numbers and multiples of the batch; ``None`` where it leaves those."""
    if isinstance(a, int) and isinstance(b, int):
        results = {"Add": a + b, "Sub": a - b, "Mul": a * b}
        return results[op] if op in results else (int(a / b) if op == "Div" else a % b)
    factor = batch_factor(a) or batch_factor(b)
    number = b if isinstance(b, int) else a if isinstance(a, int) else None
    if factor is None or number is None:
        return None
    if op == "Mul" and number > 0:
        return batch_times(factor * number)
    if op == "Div" and isinstance(b, int) and b > 0 and factor % b == 0:
        return batch_times(factor // b)
    return a if op in ("Add", "Sub") and b == 0 else None


def _know_expanded(graph: WorkingGraph, node: onnx.NodeProto) -> None:
    """The shape of what is repeated to a shape that holds the batch."""
    output, wanted = node.output[0], graph.entries.get(node.input[-1])
    source = graph.known_shape(node.input[0]) if node.op_type == "Expand" else ()
    if wanted is None or source is None or output not in graph.types or graph.known_shape(output) is not None:
        return
    dims: list[Dim] = wanted.tolist()
    if None in dims or len(source) > len(dims):
        return
    padded = (*[1] * (len(dims) - len(source)), *source)
    shape = [old if new == 1 else new for old, new in zip(padded, dims, strict=True)]
    graph.know(output, shape, like=output)
