"""Safe mode: an agent that keeps dying does not train, so that somebody can reach it.

As ESPHome does it, a start counts until it has shown to be a good one. After too many in a row that did
not, the agent only connects, delivers what it has, says why it does not train, and takes commands; until a
minute of that has gone well, or the coordinator commands ``resume``.
"""

import logging

from edge_agent.outbox import Outbox
from fl_protocol.clock import Clock
from fl_protocol.errors import StorageError

__all__ = ["GOOD_S", "SafeMode"]

FOREVER = 86400.0
GOOD_S = 60.0
"""A life that lasted this long was good. So was one that made an update, had one settled, or was ended in
order: a device whose power lasts for less than a minute is no broken device."""
_STARTS = "starts"
_log = logging.getLogger("lichen.agent")


class SafeMode:
    """Counts starts in the outbox's file. ``after`` starts in a row that were not good lead to safe mode;
    0 never does."""

    __slots__ = ("_before", "_clock", "_good_at", "_outbox", "_proven", "active")

    def __init__(self, outbox: Outbox, clock: Clock, *, after: int) -> None:
        self._outbox = outbox
        self._clock = clock
        self._good_at = clock.monotonic() + GOOD_S
        self._before = _number(outbox.recall(_STARTS)) if after else 0
        self._proven = not after
        self.active = 0 < after <= self._before
        """Whether this agent is not to train."""
        if after:
            self._note(self._before + 1)
        if self.active:
            _log.warning("%s", self.reason)

    @property
    def reason(self) -> str:
        """Why it does not train; empty where it may."""
        if not self.active:
            return ""
        return f"safe_mode: the last {self._before} starts ended within {GOOD_S:.0f} s"

    def prove(self) -> None:
        """This start is a good one: no start before it counts any more."""
        if not self._proven:
            self._proven = self._note(0)

    def leave(self) -> None:
        """Train again, whatever was; as ``resume`` commands."""
        if self.active:
            _log.warning("safe mode ends")
        self.active = False
        self.prove()

    def end(self) -> None:
        """The agent ends in order: this start does not count."""
        if not self._proven:
            self._proven = self._note(self._before)

    def work(self) -> float:
        """Leave safe mode when its time has come; seconds until then."""
        left = self._good_at - self._clock.monotonic()
        if left <= 0:
            self.leave()
        return left if left > 0 else FOREVER

    def _note(self, starts: int) -> bool:
        """Remember a count. A disk that refuses is no reason to do less than without it."""
        try:
            self._outbox.remember(_STARTS, str(starts).encode())
        except StorageError as error:
            _log.warning("%s", error)
            return False
        return True


def _number(fact: bytes | None) -> int:
    return int(fact) if fact and fact.isdigit() else 0
