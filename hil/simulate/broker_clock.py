"""Time beside a real broker: it passes while messages are under way, and jumps when none is."""

import sys
import time
from collections.abc import Callable

from hil.simulate.virtual_clock import VirtualClock

__all__ = ["BrokerClock"]

SLICE_S = 0.02
"""Events of one moment are a thousand trainings, perhaps: sockets are looked after in between."""


class BrokerClock(VirtualClock):
    """``wait`` is given seconds of this clock, and says how many of them have passed when it returns."""

    def __init__(self, wait: Callable[[float], float]) -> None:
        super().__init__()
        self._wait = wait

    def advance_to(self, at: float) -> None:
        """Move on, as far as the broker lets time pass."""
        self._now += self._wait(max(at - self._now, 0.0))

    def happen(self, most: int = sys.maxsize) -> int:
        """As ``VirtualClock.happen``, but for a slice of real time only: what is left is due still. ``most``
        is not asked: a slice is short."""
        ends = time.monotonic() + SLICE_S
        count = self._events.happen(self._now, lambda: time.monotonic() < ends)
        self.happened += count
        return count
