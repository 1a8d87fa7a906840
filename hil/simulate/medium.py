"""Media: what carries the messages of a virtual fleet, and whose time it is that passes."""

from collections.abc import Callable, Iterable
from typing import Protocol

from fl_protocol.loopback import LoopbackBroker
from fl_protocol.transport import Transport
from hil.simulate.transport import Caller, VirtualTransport
from hil.simulate.virtual_clock import VirtualClock

__all__ = ["Connection", "Medium", "MemoryMedium"]


class Connection(Transport, Protocol):
    """A transport whose power can fail."""

    def drop(self, reason: str) -> None:
        """End it without a farewell: the broker speaks the will."""
        ...


class Medium(Protocol):
    """One broker, as all connections of a run reach it, and the clock that goes with it."""

    @property
    def clock(self) -> VirtualClock:
        """Whose time it is."""
        ...

    def connection(self, caller: Caller) -> Connection:
        """A connection to be started."""
        ...

    def deliver_due(self) -> int:
        """Hand over what has come; how much it was."""
        ...

    def next_due(self) -> float | None:
        """When to look again, in the clock's seconds; None where nothing is under way."""
        ...

    def close(self, retained: Callable[[], Iterable[str]]) -> None:
        """End all connections; ``retained`` are topics that the run leaves on the broker."""
        ...


class MemoryMedium:
    """A broker in memory on a clock that jumps: the same seed, the same deliveries."""

    def __init__(self, *, seed: int) -> None:
        self.clock = VirtualClock()
        self._broker = LoopbackBroker(self.clock, seed=seed)
        self.deliver_due = self._broker.deliver_due
        self.next_due = self._broker.next_due

    def connection(self, caller: Caller) -> Connection:
        """See ``Medium.connection``."""
        return VirtualTransport(self._broker, caller)

    def close(self, retained: Callable[[], Iterable[str]]) -> None:
        """It goes with its memory."""
