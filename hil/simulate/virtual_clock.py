"""Virtual time: a clock that jumps from one event to the next, and the events in their order."""

import sys
from collections.abc import Callable

from fl_protocol.agenda import Agenda

__all__ = ["BEGINS_AT", "VirtualClock"]

BEGINS_AT = 1_767_571_200.0
"""When every simulation begins, for gates that look at the hour: Monday, 2026-01-05, 00:00 UTC."""


class VirtualClock:
    """Time and what is due. Events of the same moment happen in the order in which they were planned."""

    def __init__(self) -> None:
        self._now = 0.0
        self._events = Agenda()
        self.happened = 0
        """Events so far."""

    def monotonic(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now

    def wall(self) -> float:
        """The virtual date."""
        return BEGINS_AT + self._now

    def plan(self, at: float, event: Callable[[], None]) -> None:
        """Have something happen at a moment, at the earliest now."""
        self._events.plan(at if at > self._now else self._now, event)

    def next_due(self) -> float | None:
        """When the next event is; None where none is planned."""
        return self._events.next_due()

    def advance_to(self, at: float) -> None:
        """Move on; nothing happens on the way."""
        self._now = max(self._now, at)

    def happen(self, most: int = sys.maxsize) -> int:
        """Let happen what is due, and what that plans for this moment, up to ``most`` events; how many."""
        left = iter(range(most))
        count = self._events.happen(self._now, lambda: next(left, None) is not None)
        self.happened += count
        return count
