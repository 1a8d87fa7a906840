"""Gaps: which few elements of a segment travel, as the distances between them in Rice codes.

Rice: Some Practical Universal Noiseless Coding Techniques (JPL, 1979). A distance is a quotient in unary and
a remainder of ``shift`` bits; all quotients stand in one plane of bits, so that whole planes are coded at
once. With ``shift`` 0 the plane is the mask of the elements.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_protocol.errors import CodecError

__all__ = ["HIGHEST_SHIFT", "GapCode", "cheapest_shift", "gaps_of", "positions_of", "read_quotients", "unary"]

HIGHEST_SHIFT = 15

Integers = npt.NDArray[np.int32]
Octets = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class GapCode:
    """The cheapest code of some distances: the bits of each remainder, and the quotients' plane in bits."""

    shift: int
    bits: int

    @property
    def octets(self) -> int:
        """Octets of the quotients' plane."""
        return -(-self.bits // 8)


def gaps_of(positions: npt.NDArray[np.intp]) -> Integers:
    """How many elements are left out before each of the increasing ``positions``: int32[count]."""
    return np.diff(positions, prepend=-1).astype(np.int32) - np.int32(1)


def positions_of(gaps: Integers) -> Integers:
    """The positions that ``gaps``, together below 2^31, lead to: int32[count]."""
    return np.cumsum(gaps + np.int32(1), dtype=np.int32) - np.int32(1)


def cheapest_shift(gaps: Integers) -> GapCode:
    """The code of the fewest bits, of several equal ones that of the smallest shift; 0 bits for no gaps."""
    count = len(gaps)
    if not count:
        return GapCode(0, 0)
    best = GapCode(0, count + int(gaps.sum()))
    for shift in range(1, HIGHEST_SHIFT + 1):
        longer = GapCode(shift, count + int((gaps >> shift).sum()))
        # what another bit of remainder saves only shrinks: behind the first rise there is no second valley
        if longer.bits + count >= best.bits:
            break
        best = longer
    return best


def unary(quotients: Integers) -> Octets:
    """Each quotient as that many bits 0 and a 1, lowest bit of an octet first; zeros fill the last octet."""
    if not len(quotients):
        return np.zeros(0, np.uint8)
    ends = positions_of(quotients)
    bits = np.zeros(int(ends[-1]) + 1, np.uint8)
    bits[ends] = 1
    return np.packbits(bits, bitorder="little")


def read_quotients(plane: Octets, count: int) -> Integers:
    """The ``count`` quotients of a plane: int32[count].

    Raises:
        CodecError: it holds another number of them, or octets behind the last one.
    """
    ends = np.flatnonzero(np.unpackbits(plane, bitorder="little"))
    if len(ends) != count or (len(plane) and not plane[-1]):
        raise CodecError(f"a plane of {len(plane)} bytes does not end with the last of {count} positions")
    return gaps_of(ends)
