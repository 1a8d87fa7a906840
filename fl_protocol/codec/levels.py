"""Levels: the whole numbers that EDEN's codes stand for, and the way to them and back.

Rotated values are nearly Gaussian; the levels are those of Lloyd and Max for a Gaussian (Max: Quantizing
for Minimum Distortion, 1960), in hundredths of its standard deviation and rounded. They are whole so that
decoding is exact: every partial sum of a rotation of B of them is at most ``B * sqrt(B) * level``, below
2^24. The table is part of the wire format.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "code_energy", "energy_factor", "octets_of", "quantize", "spread_codes"]

LEVELS = {1: (1,), 2: (45, 151), 4: (13, 39, 66, 94, 126, 162, 207, 273)}
"""The positive levels by bits; each stands for its negative too."""

# of a Gaussian: the mean square of the level over the squared mean of level times value
_ENERGY_FACTORS = {1: np.pi / 2, 2: 1.133126, 4: 1.009595}
_PER_DEVIATION = 100
_MOST = 2.0**100
_REACH = 600
"""Half levels, beyond which every value has the outermost level."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Octets = npt.NDArray[np.uint8]


def energy_factor(bits: int) -> float:
    """How many times the energy of a decoded long block exceeds the block's."""
    return float(_ENERGY_FACTORS[bits])


def quantize(rotated: Floats, deviations: Doubles, bits: int, scratch: Floats, levels: Doubles) -> Octets:
    """The code of the nearest of 4 or 16 levels for each value: uint8[rows, B]; code 0 is the lowest level.

    Args:
        rotated: float32[rows, B].
        deviations: float64[rows]: the root mean square of each row.
        scratch: float32[rows, B]; its content is lost.
        levels: float64[rows, B]; takes the levels of the codes.
    """
    factors = np.zeros(len(rotated))
    np.divide(2.0 * _PER_DEVIATION, deviations, out=factors, where=deviations > 0)
    np.multiply(rotated, np.minimum(factors, _MOST)[:, np.newaxis].astype(np.float32), out=scratch)
    np.add(scratch, np.float32(_REACH), out=scratch)
    np.clip(scratch, 0, 2 * _REACH - 1, out=scratch)
    # all are positive, so that the cast is a floor
    places = scratch.astype(np.intp)
    _wide_table(bits).take(places, out=levels, mode="clip")
    codes: Octets = _code_table(bits).take(places, mode="clip")
    return codes


def octets_of(codes: Octets, bits: int) -> Octets:
    """Pack codes into octets, the first code lowest: uint8[codes * bits / 8]."""
    flat = codes.reshape(-1)
    if bits == 1:
        return np.packbits(flat, bitorder="little")
    # as many codes as an octet holds, seen as one word: shifts bring them together at its bottom
    count = 8 // bits
    words = flat.view(f"<u{count}")
    packed = words.copy()
    for place in range(1, count):
        packed |= words >> words.dtype.type((8 - bits) * place)
    return packed.astype(np.uint8)


def spread_codes(octets: Octets, bits: int, out: Floats) -> None:
    """Write the levels that packed codes stand for into contiguous ``out``."""
    # mode="clip" lets numpy write into out directly; every octet is a valid index
    _level_table(bits).take(octets, axis=0, out=out.reshape(-1, 8 // bits), mode="clip")


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
def _code_table(bits: int) -> Octets:
    """The code for each half level from ``-_REACH`` on; between two levels the middle has the upper one."""
    levels = _levels(bits)
    twice = levels[1:] + levels[:-1]
    return np.searchsorted(twice, np.arange(-_REACH, _REACH), side="right").astype(np.uint8)


@lru_cache(maxsize=4)
def _wide_table(bits: int) -> Doubles:
    """The level for each half level from ``-_REACH`` on."""
    table: Doubles = _levels(bits)[_code_table(bits)].astype(np.float64)
    return table


@lru_cache(maxsize=4)
def _level_table(bits: int) -> Floats:
    """float32[256, 8 / bits]: the levels that each octet stands for."""
    places = np.arange(0, 8, bits, dtype=np.uint8)
    codes = np.arange(256, dtype=np.uint8)[:, np.newaxis] >> places & np.uint8(2**bits - 1)
    table: Floats = _levels(bits)[codes]
    table.flags.writeable = False
    return table
