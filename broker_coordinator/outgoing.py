"""Messages to devices that wait for room in the connection's window.

Bounded: the oldest is dropped and counted when it is full. Nothing is lost by that for good: a device
asks again.
"""

from collections import deque

from fl_protocol.transport import Transport

__all__ = ["Outgoing"]

MAX_MESSAGES = 20_000
MAX_BYTES = 64 << 20


class Outgoing:
    """A queue before ``Transport.publish``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._queue: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def send(self, topic: str, payload: bytes) -> None:
        """Send now, or as soon as there is room."""
        if not self._queue and self._transport.publish(topic, payload) is not None:
            return
        self._queue.append((topic, payload))
        self._bytes += len(payload)
        while len(self._queue) > MAX_MESSAGES or self._bytes > MAX_BYTES:
            self._bytes -= len(self._queue.popleft()[1])
            self.dropped += 1

    def flush(self) -> bool:
        """Send what there is room for; whether nothing waits any more."""
        while self._queue:
            topic, payload = self._queue[0]
            if self._transport.publish(topic, payload) is None:
                return False
            self._queue.popleft()
            self._bytes -= len(payload)
        return True
