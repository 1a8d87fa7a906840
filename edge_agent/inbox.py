"""The inbox: what other threads have for the supervisor. Bounded where it must be, never blocking.

Messages beyond the bound are dropped and counted: brokers lose messages too, and whatever matters is
asked for again. Connection changes, acknowledgements and results are few by nature and always taken.
"""

import queue
from collections.abc import Sequence
from typing import Generic, TypeVar

from fl_protocol.transport import Received

__all__ = ["Inbox"]

T = TypeVar("T")

MAX_WAITING = 64
"""At 64 KiB a message, 4 MiB at most."""


class Inbox(Generic[T]):
    """Many writers, one reader. ``put`` may be called from a signal's handler too."""

    __slots__ = ("_pulled", "_queue", "dropped")

    def __init__(self) -> None:
        self.dropped = 0
        # Not queue.Queue: its put takes a lock that the thread a signal interrupts may hold.
        self._queue: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._pulled: tuple[T, ...] = ()

    def __len__(self) -> int:
        return self._queue.qsize() + len(self._pulled)

    def put(self, item: T) -> None:
        """Hand something over and return at once."""
        if isinstance(item, Received) and self._queue.qsize() >= MAX_WAITING:
            self.dropped += 1
            return
        self._queue.put(item)

    def take(self, most: int) -> Sequence[T]:
        """What is there, oldest first; at most ``most``, so that a flood leaves time for all else."""
        there = self._queue.qsize()
        if not there and not self._pulled:
            return ()
        first, self._pulled = (list(self._pulled), ()) if most else ([], self._pulled)
        for _ in range(min(most - len(first), there)):
            first.append(self._queue.get_nowait())
        return first

    def wait(self, seconds: float) -> None:
        """Return when something is there, or after ``seconds``."""
        if not self._pulled:
            try:
                self._pulled = (self._queue.get(timeout=max(seconds, 0.0)),)
            except queue.Empty:
                return
