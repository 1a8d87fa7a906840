"""ONNX operators in plain NumPy (opset 18): one small function each, found through one table.

Arithmetic, products and reductions stand here; importing this module enters all kernels.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from models.runtime import numpy_ops_shape, numpy_ops_window  # noqa: F401 - enters their kernels
from models.runtime.numpy_kernel import KERNELS, Array, Attributes, Kernel, kernel
from models.runtime.onnx_reader import DTYPES

__all__ = ["KERNELS", "PLAIN", "Kernel"]

_erf = np.frompyfunc(math.erf, 1, 1)


def _plain(function: Callable[..., Any]) -> Kernel:
    return lambda attributes, *inputs: np.asarray(function(*inputs))


def _folded(function: Callable[[Array, Array], Array]) -> Kernel:
    def fold(attributes: Attributes, first: Array, *others: Array) -> Array:
        for other in others:
            first = function(first, other)
        return first

    return fold


PLAIN: Mapping[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Cos": np.cos,
    "Equal": np.equal,
    "Exp": np.exp,
    "Floor": np.floor,
    "Greater": np.greater,
    "Identity": np.asarray,
    "IsNaN": np.isnan,
    "Less": np.less,
    "Log": np.log,
    "MatMul": np.matmul,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Reciprocal": np.reciprocal,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Tanh": np.tanh,
    "Where": np.where,
}
"""Operators without attributes, by what computes them: a scalar may come out in place of an array."""
KERNELS.update((op, _plain(function)) for op, function in PLAIN.items())
KERNELS["Max"] = _folded(np.maximum)
KERNELS["Min"] = _folded(np.minimum)
KERNELS["Sum"] = _folded(np.add)


@kernel("Div")
def _div(attributes: Attributes, a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(np.divide(a, b))
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(quotient * np.sign(a) * np.sign(b), a.dtype)


@kernel("Relu")
def _relu(attributes: Attributes, x: Array) -> Array:
    return np.asarray(np.maximum(x, x.dtype.type(0)))


@kernel("LeakyRelu")
def _leaky_relu(attributes: Attributes, x: Array) -> Array:
    return np.where(x < 0, x * x.dtype.type(attributes.get("alpha", 0.01)), x)


@kernel("Sigmoid")
def _sigmoid(attributes: Attributes, x: Array) -> Array:
    # exp of a negative number only, so that nothing overflows.
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small), x.dtype)


@kernel("Erf")
def _error_function(attributes: Attributes, x: Array) -> Array:
    return np.asarray(_erf(x), x.dtype)


@kernel("Pow")
def _pow(attributes: Attributes, x: Array, exponent: Array) -> Array:
    return np.asarray(np.power(x, exponent), x.dtype)


@kernel("Mod")
def _mod(attributes: Attributes, a: Array, b: Array) -> Array:
    return np.asarray(np.fmod(a, b) if attributes.get("fmod") else np.mod(a, b), a.dtype)


@kernel("Clip")
def _clip(attributes: Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    if low is not None:
        x = np.maximum(x, low)
    return x if high is None else np.asarray(np.minimum(x, high))


@kernel("Cast")
def _cast(attributes: Attributes, x: Array) -> Array:
    dtype = DTYPES.get(attributes.get("to", 0))
    if dtype is None:
        raise ValueError(f"cast to element type {attributes.get('to')}")
    return x.astype(dtype.newbyteorder("="))


@kernel("Gemm")
def _gemm(attributes: Attributes, a: Array, b: Array, c: Array | None = None) -> Array:
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"a matrix product of {a.ndim} and {b.ndim} dimensions")
    product = (a.T if attributes.get("transA") else a) @ (b.T if attributes.get("transB") else b)
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha != 1:
        product = product * product.dtype.type(alpha)
    if c is not None:
        product = product + (c if beta == 1 else c * c.dtype.type(beta))
    return np.asarray(product)


def _reduction(function: Callable[..., Any]) -> Kernel:
    def reduce(attributes: Attributes, x: Array, axes: Array | None = None) -> Array:
        if axes is None or axes.size == 0:
            if attributes.get("noop_with_empty_axes"):
                return x
            over = None
        else:
            over = tuple(axes.tolist())
        return np.asarray(function(x, axis=over, keepdims=bool(attributes.get("keepdims", 1))))

    return reduce


KERNELS["ReduceMax"] = _reduction(np.maximum.reduce)
KERNELS["ReduceMean"] = _reduction(np.mean)
KERNELS["ReduceSum"] = _reduction(np.add.reduce)


@kernel("Softmax")
def _softmax(attributes: Attributes, x: Array) -> Array:
    axis = attributes.get("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


@kernel("LogSoftmax")
def _log_softmax(attributes: Attributes, x: Array) -> Array:
    axis = attributes.get("axis", -1)
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


@kernel("ArgMax")
def _argmax(attributes: Attributes, x: Array) -> Array:
    if attributes.get("select_last_index"):
        raise ValueError("ArgMax with select_last_index")
    keep = bool(attributes.get("keepdims", 1))
    return np.asarray(np.argmax(x, axis=attributes.get("axis", 0), keepdims=keep), np.int64)


@kernel("OneHot")
def _one_hot(attributes: Attributes, indices: Array, depth: Array, values: Array) -> Array:
    if attributes.get("axis", -1) != -1:
        raise ValueError("OneHot along another axis than the last")
    count = int(depth.reshape(()))
    wrapped = np.where(indices < 0, indices + count, indices)
    return np.asarray(np.where(wrapped[..., None] == np.arange(count), values[1], values[0]))
