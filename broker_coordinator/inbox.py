"""The bounded queue between the connection's thread and the coordinator's.

A message beyond the bound is dropped, counted and acknowledged, as a broker would: left unacknowledged it
would hold a place in the broker's window for ever, and its device sends it again anyway.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from fl_protocol.transport import Received, TransportEvent

__all__ = ["Inbox"]

MAX_MESSAGES = 8192


class Inbox:
    """``put`` from any thread; ``take`` and ``wait`` from one."""

    def __init__(self, max_bytes: int, reject: Callable[[int], None]) -> None:
        self._max_bytes = max_bytes
        self._reject = reject
        self._events: deque[TransportEvent] = deque()
        self._bytes = 0
        self._messages = 0
        self._arrived = threading.Condition()
        self.dropped = 0
        self.highest = 0
        """Most messages that have waited at once: a burst is over before anyone looks."""

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: TransportEvent) -> None:
        """Take an event in; returns at once."""
        with self._arrived:
            if isinstance(event, Received):
                if self._messages >= MAX_MESSAGES or self._bytes + len(event.payload) > self._max_bytes:
                    self.dropped += 1
                    self._reject(event.token)
                    return
                self._messages += 1
                self.highest = max(self.highest, self._messages)
                self._bytes += len(event.payload)
            self._events.append(event)
            self._arrived.notify()

    def wake(self) -> None:
        """End a ``wait``."""
        with self._arrived:
            self._arrived.notify()

    def wait(self, timeout_s: float) -> None:
        """Return when something is there, or is to be done, at the latest after ``timeout_s``."""
        with self._arrived:
            if not self._events:
                self._arrived.wait(timeout_s)

    def take(self, most: int) -> Sequence[TransportEvent]:
        """The next events, up to the ``most``-th message among them."""
        batch: list[TransportEvent] = []
        with self._arrived:
            while self._events and most:
                event = self._events.popleft()
                batch.append(event)
                if isinstance(event, Received):
                    most -= 1
                    self._messages -= 1
                    self._bytes -= len(event.payload)
        return batch
