"""The generator PCG64 as arithmetic on arrays: the first words of many streams at once.

O'Neill: PCG (2014), the variant XSL RR 128/64; the same words as numpy's bit generator gives. One generator
for each stream costs more than the words it draws, where a model is small. After i steps a state s with the
increment c has become ``M**i * s + (1 + M + ... + M**(i-1)) * c`` modulo 2**128, so that no word need wait
for the one before it.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["first_words"]

Words = npt.NDArray[np.uint64]

_MULTIPLIER = 2549297995355413924 << 64 | 4865540595714422341
_MASK128 = (1 << 128) - 1
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ONE = np.uint64(1)


class _Wide(NamedTuple):
    """Numbers of 128 bits, by their halves: uint64[...] each."""

    high: Words
    low: Words


def first_words(seeds: bytes, count: int) -> Words:
    """uint64[streams, count]: the first ``count`` words of each stream.

    ``seeds`` holds 32 bytes for a stream: state and increment, little-endian; the increment's lowest bit is
    taken as set.
    """
    parts = np.frombuffer(seeds, "<u8").astype(np.uint64).reshape(-1, 4, 1)
    state = _Wide(parts[:, 1], parts[:, 0])
    increment = _Wide(parts[:, 3], parts[:, 2] | _ONE)
    powers, sums = _steps(count)
    moved, added = _product(state, powers), _product(increment, sums)
    low = moved.low + added.low
    high = moved.high + added.high + (low < added.low)
    turn = high >> np.uint64(58)
    mixed = high ^ low
    words: Words = mixed >> turn | mixed << (np.uint64(64) - turn & np.uint64(63))
    return words


@lru_cache(maxsize=16)
def _steps(count: int) -> tuple[_Wide, _Wide]:
    """``M**i`` and ``1 + M + ... + M**(i-1)`` for i from 1 to ``count``."""
    powers, sums = [_MULTIPLIER], [1]
    for _ in range(count - 1):
        sums.append((sums[-1] + powers[-1]) & _MASK128)
        powers.append(powers[-1] * _MULTIPLIER & _MASK128)
    return _wide(powers), _wide(sums)


def _wide(numbers: list[int]) -> _Wide:
    parts = np.frombuffer(b"".join(number.to_bytes(16, "little") for number in numbers), "<u8")
    halves = parts.astype(np.uint64).reshape(-1, 2)
    return _Wide(halves[:, 1].copy(), halves[:, 0].copy())


def _product(a: _Wide, b: _Wide) -> _Wide:
    """``a * b`` modulo 2**128."""
    high = _high_half(a.low, b.low)
    high += a.high * b.low
    high += a.low * b.high
    return _Wide(high, a.low * b.low)


def _high_half(a: Words, b: Words) -> Words:
    """The upper 64 bits of a product of two times 64."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    crossed, again = a_low * b_high, a_high * b_low
    middle = a_low * b_low
    middle >>= _HALF
    middle += crossed & _LOW
    middle += again & _LOW
    high: Words = a_high * b_high
    high += crossed >> _HALF
    high += again >> _HALF
    high += middle >> _HALF
    return high
