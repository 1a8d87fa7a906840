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

    Draws one word per element; with its low 16 bits replaced by the element's position it is the
    element's key, and the smallest keys are kept. Keys differ, so there is one answer.
    """
    keys = stream.words(size)
    keys.view("<u2")[::4] = np.arange(size, dtype="<u2")
    ordered = keys.copy()
    ordered.partition(count - 1)
    largest = ordered[count - 1]
    del ordered  # half a megabyte, given back before the positions need as much
    return np.flatnonzero(keys <= largest)
