"""Standing: what lastingly keeps this device from training, and whether the coordinator knows.

A birth says why a device does not train, and comes with a connection, which may stand for weeks. So a device
that fails every version from some day on would pass for a sound one: it says so when it begins, and when it
is over. The ways of every task (fetching, waiting for the next version) are no news to anybody.
"""

import re
from collections.abc import Callable

from fl_protocol.clock import Clock

__all__ = ["MOST_AN_HOUR", "Standing"]

MOST_AN_HOUR = 2
"""So many births more, whatever comes and goes: 48 of some 150 bytes a day."""
_HOUR_S = 3600.0
_SOON_S = 2.0
_FOREVER = 86400.0
_NUMBERS = re.compile(r"\d+(\.\d+)*")


class Standing:
    """``trouble`` says what is in the way now, empty where nothing is; ``restate`` asks for a birth within so
    many seconds. Numbers in a trouble are no news: a temperature changes at every look."""

    __slots__ = ("_clock", "_restate", "_restated", "_told", "_trouble")

    def __init__(self, clock: Clock, *, trouble: Callable[[], str], restate: Callable[[float], None]) -> None:
        self._clock = clock
        self._trouble = trouble
        self._restate = restate
        self._told = ""
        self._restated: tuple[float, ...] = ()

    def told(self) -> None:
        """A birth goes out, whatever for."""
        self._told = self._kind()

    def work(self) -> float:
        """Ask for a birth if there is news, and not too many came before; seconds until there may be."""
        kind = self._kind()
        if kind == self._told:
            return _FOREVER
        now = self._clock.monotonic()
        if len(self._restated) == MOST_AN_HOUR and now < self._restated[0] + _HOUR_S:
            return self._restated[0] + _HOUR_S - now
        self._restated = (*self._restated, now)[-MOST_AN_HOUR:]
        self._told = kind
        self._restate(_SOON_S)
        return _FOREVER

    def _kind(self) -> str:
        trouble = self._trouble()
        return _NUMBERS.sub("", trouble) if trouble else ""
