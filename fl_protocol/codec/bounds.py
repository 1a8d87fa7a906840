"""Bounds: which numbers a payload may carry, and which a device may encode.

Scales are +0 or in [2^-100, 2^100]; values are finite and at most 2^100 in magnitude. Within these
bounds no decoded value, and no norm of one, overflows or becomes denormal, whatever the codec.
"""

import numpy as np
import numpy.typing as npt

from fl_protocol.errors import CodecError, LayoutError
from fl_protocol.layout import TensorLayout

__all__ = [
    "HIGHEST_FLOAT16",
    "bounded_scales",
    "check_codes",
    "check_float16",
    "check_length",
    "check_scales",
    "check_values",
    "fitting_vector",
]

HIGHEST_FLOAT16 = 65504.0
"""The largest finite float16."""

_LOWEST = 2.0**-100
_EXPONENT = np.uint16(0x7C00)
_PIECE = 65_536
_HIGHEST = 2.0**100
# Positive floats are ordered as their bits are, and every negative, infinite or NaN one has bits above.
_LOWEST_BITS = np.uint32((127 - 100) << 23)
_HIGHEST_BITS = np.uint32((127 + 100) << 23)


def fitting_vector(vector: npt.NDArray[np.float32], layout: TensorLayout) -> npt.NDArray[np.float32]:
    """``vector`` as a contiguous float32[n] that fits ``layout``.

    Raises:
        LayoutError: it is not float32[layout.size].
    """
    if vector.dtype != np.float32 or vector.shape != (layout.size,):
        raise LayoutError(f"expected float32[{layout.size}], got {vector.dtype}{list(vector.shape)}")
    return np.ascontiguousarray(vector)


def check_values(values: npt.NDArray[np.float32], where: str) -> None:
    """Refuse NaN, infinite and huge values, without a temporary array.

    Raises:
        CodecError: naming ``where``.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn where it is compared
        fits = not values.size or bool(values.min() >= -_HIGHEST and values.max() <= _HIGHEST)
    if not fits:
        raise CodecError(f"{where} holds a value that is not finite, or above 2^100 in magnitude")


def check_scales(scales: npt.NDArray[np.float32]) -> None:
    """Refuse scales that are neither +0 nor in [2^-100, 2^100].

    Raises:
        CodecError: naming the first such scale.
    """
    bits = scales.view("<u4")
    wrong = (bits != 0) & ((bits < _LOWEST_BITS) | (bits > _HIGHEST_BITS))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise CodecError(f"scale {first} is {scales[first]!s}, neither 0 nor in [2^-100, 2^100]")


def check_codes(codes: npt.NDArray[np.int8]) -> None:
    """Refuse the 8-bit code -128: codes are symmetric, so that a payload has one form.

    Raises:
        CodecError: a code is -128.
    """
    if codes.size and codes.min() == -128:
        raise CodecError("an 8-bit code is -128, outside [-127, 127]")


def check_float16(values: npt.NDArray[np.float16], where: str) -> None:
    """Refuse a float16 that is infinite or NaN, in cache-sized pieces.

    Raises:
        CodecError: naming ``where``.
    """
    bits = values.view("<u2")
    for start in range(0, len(bits), _PIECE):
        if ((bits[start : start + _PIECE] & _EXPONENT) == _EXPONENT).any():
            raise CodecError(f"{where} holds a float16 that is not finite")


def check_length(payload: bytes, size: int) -> None:
    """Refuse a payload that is not exactly ``size`` bytes long.

    Raises:
        CodecError: naming both lengths.
    """
    if len(payload) != size:
        raise CodecError(f"the payload has {len(payload)} bytes, its codec and layout make {size}")


def bounded_scales(scales: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Scales as they travel: below 2^-100 they become 0, above 2^100 they become 2^100."""
    return np.where(scales < _LOWEST, 0.0, np.minimum(scales, _HIGHEST)).astype("<f4")
