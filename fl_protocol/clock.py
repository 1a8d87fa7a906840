"""Time as an argument: intervals from a monotonic clock, never order by the wall."""

from typing import Protocol

__all__ = ["Clock", "ManualClock"]


class Clock(Protocol):
    """What both sides ask of time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back, goes on while the machine sleeps."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 as the machine believes, for people to read; never compared or sorted by."""
        ...


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._now

    def wall(self) -> float:
        """The same: a fleet on this clock was born in 1970."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds`` (not negative)."""
        self._now += max(seconds, 0.0)
