"""Running statistics: how the buffers of a version's updates become those of the next version.

A buffer (the mean or the variance that a BatchNorm has seen) is no weight. Nothing in its delta is a
gradient, so no optimizer moves it; and a device sees the whole of it anew, so that its delta goes all the
way from its base to its own. Deltas that are late must therefore not be added up: a few of them from one
base go several times that way, and make variances negative. What is averaged is where devices arrived,
``sum(n s (b + d)) / sum(n s)``: b the buffers of the update's base, n its weight and s its scale. Where no
update is late that is the last version's buffers plus the mean of the deltas; however late they are it lies
between what devices reported.
"""

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.version_state import VersionState

__all__ = ["StatisticsMean"]


class StatisticsMean:
    """The mean of the buffers on top of ``state``: element-wise, in the order of the calls.

    An update whose base is older than the state remembers does not count here.
    """

    def __init__(self, state: VersionState) -> None:
        self._state = state
        self._total = np.zeros(state.buffer_size, np.float32)
        self._weight = np.float32(0)
        self._base: NDArray[np.float32] | None = None
        self._share = np.float32(0)

    def begin(self, base: int, share: np.float32) -> None:
        """The pieces of an update follow; ``base`` is the number of its base, ``share`` its n s."""
        self._base = self._state.buffers_of(base)
        self._share = share
        if self._base is not None:
            self._weight = np.float32(self._weight + share)

    def accumulate(self, start: int, values: NDArray[np.float32]) -> None:
        """Add one piece of its deltas, the elements from ``start`` on; ``values`` is scratch."""
        if self._base is None:
            return
        piece = slice(start, start + len(values))
        np.add(values, self._base[piece], out=values)
        np.multiply(values, self._share, out=values)
        np.add(self._total[piece], values, out=self._total[piece])

    def finalize(self) -> NDArray[np.float32]:
        """The next version's buffers; the state's own where no update counts. Gives the array away."""
        if not self._weight > 0:
            return self._state.buffers
        return np.divide(self._total, self._weight, out=self._total)
