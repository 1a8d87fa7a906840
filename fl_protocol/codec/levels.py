"""Levels: the whole numbers that EDEN's codes stand for, and the way to them and back.

Rotated values are nearly Gaussian; the levels are those of Lloyd and Max for a Gaussian (Max: Quantizing
for Minimum Distortion, 1960), in hundredths of its standard deviation and rounded. They are whole so that
decoding is exact: every partial sum of a rotation of B of them is at most ``B * sqrt(B) * level``, below
2^24. The table is part of the wire format.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "code_energy", "energy_factor", "half_levels", "octets_of", "quantize", "spread_codes"]

LEVELS = {1: (1,), 2: (45, 151), 4: (13, 39, 66, 94, 126, 162, 207, 273)}
"""The positive levels by bits; each stands for its negative too."""

# of a Gaussian: the mean square of the level over the squared mean of level times value
_ENERGY_FACTORS = {1: np.pi / 2, 2: 1.133126, 4: 1.009595}
_PER_DEVIATION = 100
_LEAST = 2.0**-100

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Octets = npt.NDArray[np.uint8]


def energy_factor(bits: int) -> float:
    """How many times the energy of a decoded long block exceeds the block's."""
    return float(_ENERGY_FACTORS[bits])


def half_levels(energies: Doubles) -> Floats:
    """What the values of blocks of these mean squares are multiplied by before they are quantized."""
    return (2 * _PER_DEVIATION / np.maximum(np.sqrt(energies), _LEAST)).astype(np.float32)


def quantize(rotated: Floats, factors: Floats, bits: int, scratch: Floats) -> Octets:
    """The code of the nearest level for each value, code 0 the lowest level: uint8, shaped as ``rotated``.

    Args:
        rotated: float32[..., n].
        factors: float32, of a shape that fits: the :func:`half_levels` of each value's block; with one bit
            they are not used.
        scratch: float32 as ``rotated``; with one bit it takes the magnitudes, else its content is lost.
    """
    np.abs(rotated, out=scratch)
    below = np.less(rotated, 0).view(np.uint8)
    if bits == 1:
        return np.bitwise_xor(below, 1, out=below)
    positive = LEVELS[bits]
    np.multiply(scratch, factors, out=scratch)
    first, *others = (np.float32(lower + upper) for lower, upper in pairwise(positive))
    codes: Octets = np.greater_equal(scratch, first).view(np.uint8)
    reached = np.empty(rotated.shape, np.bool_)
    for bound in others:
        np.greater_equal(scratch, bound, out=reached)
        np.add(codes, reached.view(np.uint8), out=codes)
    np.add(codes, np.uint8(len(positive)), out=codes)
    # the code of the negative of a level has all bits the other way
    np.multiply(below, np.uint8(2 * len(positive) - 1), out=below)
    return np.bitwise_xor(codes, below, out=codes)


def octets_of(codes: Octets, bits: int) -> Octets:
    """Pack codes into octets, the first code lowest: uint8[codes * bits / 8]."""
    flat = codes.reshape(-1)
    if bits == 1:
        return np.packbits(flat, bitorder="little")
    # as many codes as an octet holds, seen as one word: a product brings them together in its highest octet,
    # for no two of its bits meet
    count = 8 // bits
    top = 8 * (count - 1)
    words = flat.view(f"<u{count}")
    packed = words * words.dtype.type(sum(1 << top - (8 - bits) * place for place in range(count)))
    octets: Octets = np.right_shift(packed, words.dtype.type(top), out=packed).astype(np.uint8)
    return octets


def spread_codes(octets: Octets, bits: int, out: Floats) -> None:
    """Write the levels that packed codes stand for into contiguous ``out``."""
    # mode="wrap" lets numpy write into out directly; every octet is a valid index
    _level_table(bits).take(octets, axis=0, out=out.reshape(-1, 8 // bits), mode="wrap")


def code_energy(octets: Octets, bits: int, blocks: int) -> Doubles:
    """The sum of the squared levels of each of ``blocks`` blocks of one width: float64[blocks]."""
    energies = np.square(_level_table(bits).astype(np.float64)).sum(axis=1)
    sums: Doubles = energies[octets].reshape(blocks, -1).sum(axis=1)
    return sums


@lru_cache(maxsize=4)
def _levels(bits: int) -> Floats:
    """All levels, the lowest first."""
    positive = LEVELS[bits]
    return np.array([*(-level for level in reversed(positive)), *positive], np.float32)


@lru_cache(maxsize=4)
def _level_table(bits: int) -> Floats:
    """float32[256, 8 / bits]: the levels that each octet stands for."""
    places = np.arange(0, 8, bits, dtype=np.uint8)
    codes = np.arange(256, dtype=np.uint8)[:, np.newaxis] >> places & np.uint8(2**bits - 1)
    table: Floats = _levels(bits)[codes]
    table.flags.writeable = False
    return table
