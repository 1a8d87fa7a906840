"""The form of a sample: dtype and shape of ``x`` and ``y``, the same for all samples of a store."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_protocol.errors import LayoutError

__all__ = ["Array", "SampleForm", "as_stored", "shaped"]

Array: TypeAlias = NDArray[Any]

_NARROWED = {"float64": "float32", "int64": "int32", "uint64": "int32", "uint32": "int32", "bool": "uint8"}
_STORED = ("float32", "float16", "int32", "int16", "int8", "uint16", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleForm:
    """``x_dtype``, ``x_shape`` and the same of ``y``; samples without label have ``y_shape`` ``(0,)``."""

    x_dtype: str
    x_shape: tuple[int, ...]
    y_dtype: str
    y_shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Array, y: Array) -> "SampleForm":
        """The form of one sample."""
        return cls(x_dtype=x.dtype.name, x_shape=x.shape, y_dtype=y.dtype.name, y_shape=y.shape)

    @classmethod
    def from_json(cls, text: str) -> "SampleForm":
        """Read what ``to_json`` wrote."""
        x_dtype, x_shape, y_dtype, y_shape = json.loads(text)
        return cls(x_dtype=x_dtype, x_shape=tuple(x_shape), y_dtype=y_dtype, y_shape=tuple(y_shape))

    def to_json(self) -> str:
        """The form as a short text."""
        return json.dumps([self.x_dtype, self.x_shape, self.y_dtype, self.y_shape])

    def stack_x(self, rows: list[bytes]) -> Array:
        """``x_dtype[len(rows), *x_shape]`` of stored samples."""
        return _stack(rows, self.x_dtype, self.x_shape)

    def stack_y(self, rows: list[bytes]) -> Array:
        """``y_dtype[len(rows), *y_shape]`` of stored labels."""
        return _stack(rows, self.y_dtype, self.y_shape)

    def __str__(self) -> str:
        label = "no label" if self.y_shape == (0,) else f"y {self.y_dtype}{list(self.y_shape)}"
        return f"x {self.x_dtype}{list(self.x_shape)}, {label}"


def as_stored(values: ArrayLike) -> Array:
    """An array in the narrowest of its kind that graphs take: float64 as float32, int64 as int32.

    Raises:
        LayoutError: not numeric, not finite, or an integer beyond int32.
    """
    array = np.asarray(values)
    dtype = _NARROWED.get(array.dtype.name, array.dtype.name)
    if dtype not in _STORED:
        raise LayoutError(f"samples of type {array.dtype} cannot be stored", hint="use numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise LayoutError("a sample holds NaN or infinity", hint="leave such samples out")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array).reshape(array.shape).astype(dtype)
    if array.dtype.kind in "iu" and not np.array_equal(stored, array):
        raise LayoutError("a sample holds an integer beyond 32 bits")
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise LayoutError("a sample holds a number too large for float32")
    return stored


def shaped(rows: Array, wanted: Sequence[int]) -> Array | None:
    """``rows`` ``[n, ...]`` as a graph takes them, ``[n, *wanted]``; None where they do not fit.

    A row may be flat, or the reverse, and axes of length one may come or go; axes in another order are other
    samples. A ``wanted`` with a free size (-1) takes rows as they are.
    """
    found = rows.shape[1:]
    if -1 in wanted or found == tuple(wanted):
        return rows
    flat = len(found) <= 1 or len(wanted) <= 1
    long = [[size for size in shape if size != 1] for shape in (found, wanted)]
    if math.prod(found) != math.prod(wanted) or not (flat or long[0] == long[1]):
        return None
    return rows.reshape(len(rows), *wanted)


def _stack(rows: list[bytes], dtype: str, shape: tuple[int, ...]) -> Array:
    little = np.dtype(dtype).newbyteorder("<")
    flat = np.frombuffer(b"".join(rows), little).astype(dtype, copy=False)
    return flat.reshape(len(rows), *shape)
