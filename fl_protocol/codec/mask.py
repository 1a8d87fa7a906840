"""The seeded mask: which elements of a segment travel, without sending an index."""

import math

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.streams import Stream

__all__ = ["kept_count", "kept_positions"]


def kept_count(size: int, keep: float) -> int:
    """How many of ``size`` elements are kept: ``ceil(keep * size)``, the product in float64."""
    return min(size, math.ceil(keep * size))


def kept_positions(stream: Stream, size: int, count: int) -> npt.NDArray[np.intp]:
    """The ``count`` kept positions in a segment of ``size`` <= 65,536 elements, increasing: intp[count].

    Each element has 32 bits of the stream as its key; the smallest keys are kept, of equal ones the first.
    """
    keys = stream.octets(4 * size).view("<u4")
    largest = np.partition(keys, count - 1)[count - 1]
    positions = np.flatnonzero(keys <= largest)
    surplus = len(positions) - count
    if surplus:
        ties = np.flatnonzero(keys[positions] == largest)
        positions = np.delete(positions, ties[len(ties) - surplus :])
    return positions
