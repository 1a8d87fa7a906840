"""The downlink codec ``int8 rows``: how published weights travel.

Rows of a large tensor become 8-bit codes with one float32 scale each; small tensors and buffers stay float32.
Rounding is to nearest and element-wise, so encoding and decoding both give the same bits everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.bounds import (
    bounded_scales,
    check_codes,
    check_length,
    check_scales,
    check_values,
    fitting_vector,
)
from fl_protocol.codec.update_codec import blank_payload
from fl_protocol.layout import TensorLayout, TensorSpec

__all__ = ["decode_model", "encode_model", "model_size"]

_SMALLEST_CODED = 256
_SHORTEST_ROW = 32
_LEVELS = 127
_CHUNK = 65_536

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One tensor in the content: its elements, its float32 numbers, its codes.

    ``row`` is the row length of a coded tensor, 0 where the numbers are the values themselves.
    """

    start: int
    size: int
    row: int
    number: int
    numbers: int
    code: int


def model_size(layout: TensorLayout) -> int:
    """Exact length in bytes of encoded weights."""
    numbers, codes = _lengths(layout)
    return 4 * numbers + codes


def encode_model(weights: Floats, layout: TensorLayout) -> bytes:
    """Encode float32[n]: all float32 numbers in wire order, then all codes.

    Raises:
        LayoutError: ``weights`` is not float32[layout.size].
        CodecError: a weight is NaN, infinite, or above 2^100 in magnitude.
    """
    vector = fitting_vector(weights, layout)
    check_values(vector, "the model")
    count, codes = _lengths(layout)
    numbers = np.empty(count, "<f4")
    content = blank_payload(4 * count + codes)
    content.seek(4 * count)
    for part in _parts(layout):
        values = vector[part.start : part.start + part.size]
        own = numbers[part.number : part.number + part.numbers]
        if not part.row:
            np.copyto(own, values)
            continue
        for first, rows in _row_groups(values, part.row):
            peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1)).astype(np.float64)
            scales = bounded_scales(peaks / _LEVELS)
            own[first : first + len(rows)] = scales
            content.write(_nearest_codes(rows, scales).data)
    content.seek(0)
    content.write(numbers.data)
    return content.getvalue()


def decode_model(content: bytes, layout: TensorLayout) -> Floats:
    """Decode to float32[n]: the same bits on every machine.

    Raises:
        CodecError: wrong length, or a number out of bounds.
    """
    count, codes_length = _lengths(layout)
    check_length(content, 4 * count + codes_length)
    numbers = np.frombuffer(content, "<f4", count)
    codes = np.frombuffer(content, np.int8, offset=4 * count)
    check_codes(codes)
    weights = np.empty(layout.size, np.float32)
    for part in _parts(layout):
        values = weights[part.start : part.start + part.size]
        own = numbers[part.number : part.number + part.numbers]
        if not part.row:
            check_values(own, "the content")
            np.copyto(values, own)
            continue
        check_scales(own)
        np.copyto(values, codes[part.code : part.code + part.size])
        for first, rows in _row_groups(values, part.row):
            np.multiply(rows, own[first : first + len(rows), np.newaxis], out=rows)
    return weights


def _lengths(layout: TensorLayout) -> tuple[int, int]:
    """The number of float32 numbers and of codes."""
    numbers = codes = 0
    for part in _parts(layout):
        numbers += part.numbers
        codes += part.size if part.row else 0
    return numbers, codes


def _parts(layout: TensorLayout) -> Iterator[_Part]:
    number = code = 0
    for tensor, start in layout.offsets():
        row = _row_length(tensor)
        numbers = -(-tensor.size // row) if row else tensor.size
        yield _Part(start=start, size=tensor.size, row=row, number=number, numbers=numbers, code=code)
        number += numbers
        code += tensor.size if row else 0


def _row_length(tensor: TensorSpec) -> int:
    """As many whole slices along the first axis as make at least 32 elements; 0 where there are no rows."""
    if tensor.size < _SMALLEST_CODED or tensor.kind == "buffer":
        return 0
    inner = tensor.size // tensor.shape[0]
    return inner * -(-_SHORTEST_ROW // inner)


def _row_groups(values: Floats, row: int) -> Iterator[tuple[int, Floats]]:
    """Yield ``(first row, float32[rows, row])`` views in order, a cache full at a time.

    A short last row comes alone.
    """
    whole = len(values) // row
    step = max(1, _CHUNK // row)
    for first in range(0, whole, step):
        count = min(step, whole - first)
        yield first, values[first * row : (first + count) * row].reshape(count, row)
    if len(values) % row:
        yield whole, values[whole * row :].reshape(1, -1)


def _nearest_codes(rows: Floats, scales: Floats) -> npt.NDArray[np.int8]:
    """``rows / scales`` rounded to the nearest whole number, halves to even; 0 where the scale is 0."""
    divisors = np.where(scales == 0, np.float32(np.inf), scales)
    quotients = np.divide(rows, divisors[:, np.newaxis])
    np.rint(quotients, out=quotients)
    np.clip(quotients, -_LEVELS, _LEVELS, out=quotients)
    return quotients.astype(np.int8)
