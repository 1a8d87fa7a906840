"""Running statistics: how the buffers of a version's updates become those of the next version.

A buffer (the mean or the variance that a BatchNorm has seen) is no weight. Nothing in its delta is a
gradient, so no optimizer moves it; and a device sees the whole of it anew, so that its delta goes all the
way from its base to its own. Deltas that are late must therefore not be added up: a few of them from one
base go several times that way, and make variances negative. What is averaged is where devices arrived,
``sum(n s (b + d)) / sum(n s)``: b the buffers of the update's base, n its weight and s its scale. Where no
update is late that is the last version's buffers plus the mean of the deltas; however late they are it lies
between what devices reported.

A norm says nothing about statistics, which have units of their own: one device in eight that reports 65504
everywhere, once, makes a good model guess for three versions. So arrivals are limited by each other first:
no further from their median, element by element, than ``REACH`` times the median distance from it. Compare
Yin et al., Byzantine-Robust Distributed Learning (2018).
"""

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.version_state import VersionState
from fl_protocol.layout import TensorLayout

__all__ = ["FEWEST", "MOST_HELD", "REACH", "StatisticsMean"]

REACH = np.float32(8)
"""Of normally distributed arrivals five standard deviations; of four such arrivals 4 elements in 1000 are
limited, of eight 1 in 1000."""
FEWEST = 4
"""Of two arrivals nobody can tell which is the odd one, and of three the two nearest are often too near."""
MOST_HELD = 256
"""So many arrivals are held until the limits are known; those behind them keep to the same limits."""

_Floats = NDArray[np.float32]
_Limits = tuple[_Floats, _Floats]


class StatisticsMean:
    """The mean of the buffers on top of ``state``: element-wise, in the order of the calls.

    An update whose base is older than the state remembers does not count here, nor does one that weighs
    nothing. ``limited`` says whether arrivals limit each other.
    """

    def __init__(self, state: VersionState, layout: TensorLayout, *, limited: bool) -> None:
        self._state = state
        self._tensors = [tensor.size for tensor in layout.tensors if tensor.kind == "buffer"]
        self._total = np.zeros(state.buffer_size, np.float32)
        self._weight = np.float32(0)
        self._arrival: _Floats | None = None
        self._share = np.float32(0)
        self._held: list[tuple[_Floats, np.float32]] | None = [] if limited and state.buffer_size else None
        self._limits: _Limits | None = None

    def begin(self, base: int, share: np.float32) -> None:
        """The pieces of an update follow; ``base`` is the number of its base, ``share`` its n s."""
        self._end()
        buffers = self._state.buffers_of(base)
        self._arrival = buffers.copy() if buffers is not None and share > 0 else None
        self._share = share

    def accumulate(self, start: int, values: _Floats) -> None:
        """Add one piece of its deltas, the elements from ``start`` on."""
        if self._arrival is not None:
            piece = self._arrival[start : start + len(values)]
            np.add(values, piece, out=piece)

    def finalize(self) -> _Floats:
        """The next version's buffers; the state's own where no update counts. Gives the array away."""
        self._end()
        self._release()
        if not self._weight > 0:
            return self._state.buffers
        return np.divide(self._total, self._weight, out=self._total)

    def _end(self) -> None:
        """The arrival that was begun is complete."""
        arrival, self._arrival = self._arrival, None
        if arrival is None:
            return
        if self._held is None:
            self._add(arrival, self._share)
            return
        self._held.append((arrival, self._share))
        if len(self._held) == MOST_HELD:
            self._release()

    def _release(self) -> None:
        """Find the limits, and add what was held."""
        held, self._held = self._held or [], None
        if len(held) >= FEWEST:
            self._limits = _limits(np.stack([arrival for arrival, _ in held]), self._tensors)
        for arrival, share in held:
            self._add(arrival, share)

    def _add(self, arrival: _Floats, share: np.float32) -> None:
        if self._limits is not None:
            np.clip(arrival, *self._limits, out=arrival)
        np.multiply(arrival, share, out=arrival)
        np.add(self._total, arrival, out=self._total)
        self._weight = np.float32(self._weight + share)


def _limits(arrivals: _Floats, tensors: list[int]) -> _Limits:
    """The lowest and the highest value of each element, of float32[updates, elements].

    An element on which most devices agree to the last bit takes the width that is usual in its tensor: it may
    be a feature that few of them see.
    """
    middle = _median(arrivals)
    width = _median(np.abs(arrivals - middle))
    for of_tensor in np.split(width, np.cumsum(tensors)[:-1]):
        np.maximum(of_tensor, np.sort(of_tensor)[len(of_tensor) // 2], out=of_tensor)
    np.multiply(width, REACH, out=width)
    return middle - width, middle + width


def _median(rows: _Floats) -> _Floats:
    """Of each column; of an even number of rows the middle of the two in the middle."""
    ordered = np.sort(rows, axis=0)
    middle: _Floats = ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]
    return np.multiply(middle, np.float32(0.5), out=middle)
