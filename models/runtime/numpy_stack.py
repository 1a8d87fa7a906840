"""A graph run for many devices at once in NumPy: each has arrays of its own, the operators are the same.

A value is either *shared* (the same for every device) or *stacked*: one more axis in front, a device each.
An operator that has a rule here is called once for the whole stack; any other is called for one device after
the other, so that every graph runs, and those of dense layers run fast: a small model's time is the calls.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fl_protocol.errors import ArtifactError
from models.runtime.numpy_kernel import Array, Attributes, whole_numbers
from models.runtime.numpy_runtime import MISFITS, Call, NumpyGraph, checked_input
from models.runtime.onnx_reader import Graph

__all__ = ["StackedGraph"]


class _Shared(NamedTuple):
    """What a rule returns where the result is the same for every device."""

    array: Array


Rule: TypeAlias = Callable[[Call, Sequence[Any], Sequence[bool]], "Array | _Shared | None"]
"""``rule(call, inputs, stacked)``: arrays, or None where one is left out, and which are stacked; the stacked
result, or None where these are none of its business."""

_FROM_ONE: tuple[str, ...] = (
    *("Abs", "Cast", "Clip", "Cos", "Erf", "Exp", "Floor", "Identity", "IsNaN", "LeakyRelu", "Log", "Neg"),
    *("Not", "Reciprocal", "Relu", "Sigmoid", "Sin", "Sqrt", "Tanh"),
)
_FROM_MORE: tuple[str, ...] = (
    *("Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mod", "Mul", "Or", "Pow", "Sub"),
    *("Sum", "Where"),
)
_REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "ReduceMax": np.maximum.reduce,
    "ReduceMean": np.mean,
    "ReduceSum": np.add.reduce,
}


class StackedGraph:
    """A graph that takes inputs with a device axis in front, and gives all outputs with one.

    An input of one dimension more than the graph declares is stacked.

    Raises:
        ArtifactError: see ``NumpyGraph``.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = NumpyGraph(graph)
        self._calls = [(call, RULES.get(call.node.op)) for call in self._graph.calls]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph.

        Raises:
            ArtifactError: an input is missing or does not fit, no input is stacked or not all for as many
                devices, or an operator fails.
        """
        graph = self._graph
        values: list[Array | None] = list(graph.start)
        stacked = [False] * len(values)
        for place, declared in enumerate(graph.inputs):
            array = feeds.get(declared.name)
            if array is not None and array.ndim == len(declared.shape) + 1:
                checked_input(declared, array[0])
                stacked[place] = True
            else:
                checked_input(declared, array)
            values[place] = array
        sizes = {
            len(value) for value, many in zip(values, stacked, strict=True) if many and value is not None
        }
        if len(sizes) != 1:
            raise ArtifactError(f"a stack of inputs for {sorted(sizes)} devices")
        (devices,) = sizes
        with np.errstate(all="ignore"):
            for call, rule in self._calls:
                self._call(call, rule, values, stacked, devices)
                for place in call.done_with:
                    values[place] = None
        return {name: _spread(values[place], stacked[place], devices) for name, place in graph.outputs}

    def _call(
        self, call: Call, rule: Rule | None, values: list[Array | None], stacked: list[bool], devices: int
    ) -> None:
        inputs = [values[place] for place in call.reads]
        many = [stacked[place] for place in call.reads]
        try:
            if not any(many):
                values[call.writes] = call.function(*inputs)
                return
            result = rule(call, inputs, many) if rule is not None else None
            if result is None:
                result = _one_by_one(call, inputs, many, devices)
        except MISFITS as error:
            raise ArtifactError(f"node {call.node.name!r} ({call.node.op}): {error}") from None
        values[call.writes] = result.array if isinstance(result, _Shared) else result
        stacked[call.writes] = not isinstance(result, _Shared)


def _one_by_one(call: Call, inputs: Sequence[Any], stacked: Sequence[bool], devices: int) -> Array:
    results = []
    for device in range(devices):
        own = [
            value[device] if many and value is not None else value
            for value, many in zip(inputs, stacked, strict=True)
        ]
        results.append(call.function(*own))
    return np.stack(results)


def _spread(value: Array | None, stacked: bool, devices: int) -> Array:
    array = np.asarray(value)
    return array if stacked else np.broadcast_to(array, (devices, *array.shape))


def _aligned(inputs: Sequence[Any], stacked: Sequence[bool]) -> list[Any]:
    """Inputs that broadcast against each other as those of one device do: the device axis stays in front."""
    if len(inputs) == 1:
        return list(inputs)
    rank = max(value.ndim - many for value, many in zip(inputs, stacked, strict=True) if value is not None)
    return [
        value.reshape(len(value), *[1] * (rank + 1 - value.ndim), *value.shape[1:])
        if many and value is not None and value.ndim <= rank
        else value
        for value, many in zip(inputs, stacked, strict=True)
    ]


def _attributes(call: Call) -> Attributes:
    return call.node.attributes


def _elementwise(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Array:
    return np.asarray(call.function(*_aligned(inputs, stacked)))


def _gemm(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Array | None:
    attributes = _attributes(call)
    a, b, c = (*inputs, None)[:3]
    if a is None or b is None or a.ndim != 2 + stacked[0] or b.ndim != 2 + stacked[1]:
        return None
    if not (stacked[0] or stacked[1]):
        # Only what is added has an axis of devices: the product has none to line it up with.
        return None
    left = a.swapaxes(-1, -2) if attributes.get("transA") else a
    right = b.swapaxes(-1, -2) if attributes.get("transB") else b
    product = np.matmul(left, right)
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha != 1:
        product = product * product.dtype.type(alpha)
    if c is not None:
        (_, added) = _aligned([product, c], [True, stacked[2]])
        product = product + (added if beta == 1 else added * added.dtype.type(beta))
    return np.asarray(product)


def _matmul(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Array | None:
    if any(value is None or value.ndim - many < 2 for value, many in zip(inputs, stacked, strict=True)):
        return None
    return np.asarray(np.matmul(*_aligned(inputs, stacked)))


def _reduced(function: Callable[..., Any]) -> Rule:
    def reduce(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Any:
        x, axes = (*inputs, None)[:2]
        if x is None or not stacked[0] or any(stacked[1:]):
            return None
        attributes = _attributes(call)
        if axes is None or axes.size == 0:
            if attributes.get("noop_with_empty_axes"):
                return x
            over = tuple(range(1, x.ndim))
        else:
            over = tuple(_behind(axis, x) for axis in axes.tolist())
        if not over:
            return x
        return np.asarray(function(x, axis=over, keepdims=bool(attributes.get("keepdims", 1))))

    return reduce


def _along(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Array | None:
    """Softmax, LogSoftmax: one axis, and the shape stays."""
    axis = _attributes(call).get("axis", -1)
    return np.asarray(call.function(*inputs)) if axis < 0 else None


def _argmax(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Array | None:
    attributes = _attributes(call)
    x = inputs[0]
    if x is None or attributes.get("select_last_index"):
        return None
    axis, keep = _behind(attributes.get("axis", 0), x), bool(attributes.get("keepdims", 1))
    return np.asarray(np.argmax(x, axis=axis, keepdims=keep), np.int64)


def _one_hot(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Array | None:
    return np.asarray(call.function(*inputs)) if list(stacked) == [True, False, False] else None


def _reshape(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Any:
    x, shape = inputs
    if x is None or stacked[1]:
        return None
    sizes = whole_numbers(shape) or []
    if not _attributes(call).get("allowzero"):
        sizes = [x.shape[axis + 1] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(len(x), *sizes)


def _unsqueeze(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Any:
    x, axes = inputs
    places = whole_numbers(axes) or []
    if x is None or stacked[1] or len(places) != 1:
        return None
    at = places[0] + 1 if places[0] >= 0 else places[0] + x.ndim + 1
    return x.reshape(*x.shape[:at], 1, *x.shape[at:]) if 1 <= at <= x.ndim else None


def _transpose(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Any:
    x = inputs[0]
    if x is None:
        return None
    order = _attributes(call).get("perm") or range(x.ndim - 2, -1, -1)
    return x.transpose(0, *(axis + 1 for axis in order))


def _concat(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> Array | None:
    arrays = [value for value in inputs if value is not None]
    if not all(stacked):
        return None
    return np.concatenate(arrays, _behind(_attributes(call)["axis"], arrays[0]))


def _shape(call: Call, inputs: Sequence[Any], stacked: Sequence[bool]) -> _Shared | None:
    return None if inputs[0] is None else _Shared(call.function(inputs[0][0]))


def _behind(axis: int, x: Array) -> int:
    """The place of a device's axis in a stacked array.

    Raises:
        ValueError: there is no such axis.
    """
    if not 1 - x.ndim <= axis < x.ndim - 1:
        raise ValueError(f"axis {axis} of {x.ndim - 1} dimensions")
    return axis + 1 if axis >= 0 else axis


RULES: Mapping[str, Rule] = {
    **dict.fromkeys((*_FROM_ONE, *_FROM_MORE), _elementwise),
    **{op: _reduced(function) for op, function in _REDUCTIONS.items()},
    "ArgMax": _argmax,
    "Concat": _concat,
    "Gemm": _gemm,
    "LogSoftmax": _along,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _shape,
    "Softmax": _along,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operator name to its rule for a whole stack."""
