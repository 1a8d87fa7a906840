"""Element-wise operators as TFLite writes them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl_protocol.errors import ArtifactError
from models.build.tflite.attributes import integer, number
from models.build.tflite.replay import TRANSLATIONS, Array, Laid, Replay, Translation, Value, translation
from models.build.tflite.schema import TENSOR_TYPES
from models.runtime.onnx_reader import DTYPES, Node

__all__ = ["scalar"]

_SAME_TYPE: Mapping[str, str] = {
    "Abs": "ABS",
    "Add": "ADD",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Div": "DIV",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "Log": "LOG",
    "Mul": "MUL",
    "Neg": "NEG",
    "Pow": "POW",
    "Relu": "RELU",
    "Sigmoid": "LOGISTIC",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Sub": "SUB",
    "Tanh": "TANH",
}
_TRUTH: Mapping[str, str] = {
    "And": "LOGICAL_AND",
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "Not": "LOGICAL_NOT",
    "Or": "LOGICAL_OR",
}
_FOLDED: Mapping[str, str] = {"Max": "MAXIMUM", "Min": "MINIMUM", "Sum": "ADD"}

# erf(x) = x P(x^2) / Q(x^2) within float32's rounding for |x| <= 4, where it has become 1.
_ERF_P = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
_ERF_Q = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03),
    -1.42647390514189e-02,
)
_ERF_LIMIT = 4.0
_LARGE = 1 << 12
"""Elements from which on a comparison takes longer than four operators' overhead."""
_GREATEST = 3e38


def _plain(op: str, dtype: Any = None) -> Translation:
    return lambda replay, node, *inputs: replay.elementwise(op, *inputs, dtype=dtype)


def _folded(op: str) -> Translation:
    def fold(replay: Replay, node: Node, first: Value, *others: Value) -> Value:
        for other in others:
            first = replay.elementwise(op, first, other)
        return first

    return fold


TRANSLATIONS.update({name: _plain(op) for name, op in _SAME_TYPE.items()})
TRANSLATIONS.update({name: _plain(op, np.bool_) for name, op in _TRUTH.items()})
TRANSLATIONS.update({name: _folded(op) for name, op in _FOLDED.items()})


def scalar(value: float) -> Array:
    """A float32 scalar."""
    return np.array(value, np.float32)


@translation("Identity")
def _identity(replay: Replay, node: Node, x: Value) -> Value:
    return x


@translation("Elu")
def _elu(replay: Replay, node: Node, x: Value) -> Value:
    if number(node, "alpha", 1.0) != 1:
        raise ArtifactError("Elu with another alpha than 1")
    return replay.elementwise("ELU", x)


@translation("Reciprocal")
def _reciprocal(replay: Replay, node: Node, x: Value) -> Value:
    return replay.elementwise("DIV", scalar(1), x)


@translation("LeakyRelu")
def _leaky_relu(replay: Replay, node: Node, x: Value) -> Value:
    positive = replay.elementwise("GREATER", x, scalar(0), dtype=np.bool_)
    scaled = replay.elementwise("MUL", x, scalar(number(node, "alpha", 0.01)))
    return replay.elementwise("SELECT_V2", positive, x, scaled)


@translation("Clip")
def _clip(replay: Replay, node: Node, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    if low is not None:
        x = replay.elementwise("MAXIMUM", x, low)
    return x if high is None else replay.elementwise("MINIMUM", x, high)


@translation("Softplus")
def _softplus(replay: Replay, node: Node, x: Value) -> Value:
    """``max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    small = replay.elementwise("EXP", replay.elementwise("NEG", replay.elementwise("ABS", x)))
    rest = replay.elementwise("LOG", replay.elementwise("ADD", small, scalar(1)))
    return replay.elementwise("ADD", replay.elementwise("RELU", x), rest)


@translation("Sign")
def _sign(replay: Replay, node: Node, x: Value) -> Value:
    above, below = (
        _cast_to(replay, replay.elementwise(op, x, scalar(0), dtype=np.bool_), np.float32)
        for op in ("GREATER", "LESS")
    )
    return replay.elementwise("SUB", above, below)


@translation("IsNaN")
def _is_nan(replay: Replay, node: Node, x: Value) -> Value:
    return replay.elementwise("NOT_EQUAL", x, x, dtype=np.bool_)


@translation("Where")
def _where(replay: Replay, node: Node, condition: Value, a: Value, b: Value) -> Value:
    return replay.elementwise("SELECT_V2", condition, a, b)


@translation("Erf")
def _erf(replay: Replay, node: Node, x: Value) -> Value:
    x = replay.elementwise("MAXIMUM", x, scalar(-_ERF_LIMIT))
    x = replay.elementwise("MINIMUM", x, scalar(_ERF_LIMIT))
    square = replay.elementwise("MUL", x, x)
    above = replay.elementwise("MUL", x, _polynomial(replay, square, _ERF_P))
    return replay.elementwise("DIV", above, _polynomial(replay, square, _ERF_Q))


@translation("Cast")
def _cast(replay: Replay, node: Node, x: Value) -> Value:
    element = integer(node, "to", 0)
    dtype = DTYPES.get(element)
    if dtype is None or dtype == np.float64:
        raise ArtifactError(f"a cast to the ONNX element type {element}")
    return _cast_to(replay, x, np.int32 if dtype == np.int64 else dtype.newbyteorder("="))


def _cast_to(replay: Replay, value: Value, dtype: Any) -> Value:
    old, new = replay.dtype(value), np.dtype(dtype)
    if old == new:
        return value
    laid = replay.laid(value)
    mask = _mask(replay, laid) if new == np.float32 else None
    if mask is not None:
        return mask
    shape = [laid.shape[axis] for axis in laid.first]
    types = {"from_type": TENSOR_TYPES[old], "to_type": TENSOR_TYPES[new]}
    return Laid(
        laid.shape,
        {laid.first: replay.call("CAST", [replay.tensor(laid, laid.first)], shape, new, **types)},
    )


def _mask(replay: Replay, truth: Laid) -> Laid | None:
    """1 where a large comparison holds, else 0, in arithmetic; ``None`` for any other value.

    XNNPACK has neither comparisons nor casts: they take four times as long. Numbers that differ by less
    than 3e-39 would count as partly equal: activations differ by more, or not at all.
    """
    held = truth.tensors[truth.first]
    op, inputs = replay.graph.maker(held) if isinstance(held, int) else ("", ())
    if op not in ("EQUAL", "GREATER") or math.prod(truth.shape) < _LARGE:
        return None
    if any(replay.graph.dtype(tensor) != np.float32 for tensor in inputs):
        return None
    stored = replay.graph.shape(int(held))
    zero = inputs[1] == replay.graph.constant(scalar(0))
    over = inputs[0] if zero else replay.call("SUB", inputs, stored)
    if not zero or op == "EQUAL" or replay.graph.maker(over)[0] != "RELU":
        over = replay.call("ABS" if op == "EQUAL" else "RELU", [over], stored)
    far = replay.call("MUL", [over, replay.graph.constant(scalar(_GREATEST))], stored)
    differs = replay.call("MINIMUM", [far, replay.graph.constant(scalar(1))], stored)
    if op == "EQUAL":
        differs = replay.call("SUB", [replay.graph.constant(scalar(1)), differs], stored)
    return Laid(truth.shape, {truth.first: differs})


def _polynomial(replay: Replay, x: Value, coefficients: Sequence[float]) -> Value:
    first, second, *rest = coefficients
    value = replay.elementwise("ADD", replay.elementwise("MUL", x, scalar(first)), scalar(second))
    for coefficient in rest:
        value = replay.elementwise("ADD", replay.elementwise("MUL", value, x), scalar(coefficient))
    return value
