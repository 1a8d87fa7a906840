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
    """``put`` from one thread, ``take`` and ``wait`` from another, ``wake`` from any.

    There is no lock where nobody sleeps: what has come in is counted by the one, what was taken out by the
    other, and a deque is safe between them.
    """

    def __init__(self, max_bytes: int, reject: Callable[[int], None]) -> None:
        self._max_bytes = max_bytes
        self._reject = reject
        self._events: deque[TransportEvent] = deque()
        self._messages_in = self._bytes_in = 0
        self._messages_out = self._bytes_out = 0
        self._arrived = threading.Condition()
        self._asleep = False
        self._woken = False
        self.dropped = 0
        self.highest = 0
        """Most messages that have waited at once: a burst is over before anyone looks."""

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: TransportEvent) -> None:
        """Take an event in; returns at once."""
        if isinstance(event, Received):
            waiting = self._messages_in - self._messages_out
            size = len(event.payload)
            if waiting >= MAX_MESSAGES or self._bytes_in - self._bytes_out + size > self._max_bytes:
                self.dropped += 1
                self._reject(event.token)
                return
            self._messages_in += 1
            self._bytes_in += size
            if waiting >= self.highest:
                self.highest = waiting + 1
        self._events.append(event)
        if self._asleep:
            self.wake()

    def wake(self) -> None:
        """End a ``wait``: this one, or the next if nobody waits yet."""
        with self._arrived:
            self._woken = True
            self._arrived.notify()

    def wait(self, timeout_s: float) -> None:
        """Return when something is there, or is to be done, at the latest after ``timeout_s``."""
        with self._arrived:
            self._asleep = True
            # Only now: ``put`` appends and then looks whether we sleep, we say so and then look for events,
            # so that one of the two sees the other. The lock is held until we wait: no wake comes before.
            self._arrived.wait_for(lambda: self._events or self._woken, timeout_s)
            self._asleep = self._woken = False

    def take(self, most: int) -> Sequence[TransportEvent]:
        """The next events, up to the ``most``-th message among them."""
        batch: list[TransportEvent] = []
        while self._events and most:
            event = self._events.popleft()
            batch.append(event)
            if isinstance(event, Received):
                most -= 1
                self._messages_out += 1
                self._bytes_out += len(event.payload)
        return batch
