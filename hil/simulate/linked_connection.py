"""A connection to a real broker over a slow link: what it sends and gets waits its time first."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fl_io.connection import ConnectionTerms
from fl_io.stream_connection import WINDOW_BYTES, StreamConnection
from fl_protocol.loopback import Link
from fl_protocol.transport import Connected, Delivered, Disconnected, Received, TransportEvent
from hil.simulate.broker_connection import DeviceConnection
from hil.simulate.transport import Caller
from hil.simulate.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from hil.simulate.broker_medium import BrokerMedium

__all__ = ["LinkedConnection"]


class LinkedConnection(DeviceConnection):
    """As ``DeviceConnection``, but a publish reaches the socket when ``link`` has carried it, by the medium's
    clock, and its receiver hears of what came when the link has."""

    __slots__ = ("_clock", "_free_down", "_free_up", "_last", "_link", "_on_way", "_tokens")

    def __init__(self, medium: "BrokerMedium", terms: ConnectionTerms, caller: Caller, link: Link) -> None:
        super().__init__(medium, terms, caller)
        self._clock: VirtualClock = medium.clock
        self._link = link
        self._free_up = self._free_down = 0.0
        """Until when the link is busy, each way."""
        self._last = 0
        self._on_way: dict[int, int] = {}
        """Payload bytes of the publishes of which the receiver has not heard that they are delivered."""
        self._tokens: dict[int, int] = {}
        """Of those that are in the socket: by its tokens."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Give it to the link, if connected and the window has room."""
        connection = self._connection
        # The socket's own bounds: what is in the socket is on its way, so it has room for what leaves.
        full = len(self._on_way) >= self._terms.window or (
            self._on_way and sum(self._on_way.values()) + len(payload) > WINDOW_BYTES
        )
        if connection is None or not connection.accepted or full:
            return None
        self._last += 1
        token = self._last
        self._on_way[token] = len(payload)
        took = (len(topic) + len(payload)) / self._link.up_bytes_s if self._link.up_bytes_s else 0.0
        self._free_up = max(self._free_up, self._clock.monotonic()) + took

        def leave() -> None:
            if self._connection is connection:
                sent = DeviceConnection.publish(self, topic, payload, retain=retain)
                assert sent is not None
                self._tokens[sent] = token

        self._clock.plan(self._free_up + self._link.latency_s, leave)
        return token

    def _pass_on(self, event: TransportEvent) -> None:
        if isinstance(event, Disconnected):
            self._on_way.clear()
            self._tokens.clear()
            super()._pass_on(event)
            return
        if isinstance(event, Delivered):
            event = Delivered(self._tokens.pop(event.token, 0))
        size = len(event.topic) + len(event.payload) if isinstance(event, Received) else 0
        took = size / self._link.down_bytes_s if self._link.down_bytes_s else 0.0
        self._free_down = max(self._free_down, self._clock.monotonic()) + took
        ways = 2 if isinstance(event, Connected) else 1  # our word there, and the answer
        at = self._free_down + ways * self._link.latency_s
        self._clock.plan(at, self._arriving(self._connection, event))

    def _arriving(self, connection: StreamConnection | None, event: TransportEvent) -> Callable[[], None]:
        def arrive() -> None:
            if self._connection is connection:
                if isinstance(event, Delivered):
                    self._on_way.pop(event.token, None)
                DeviceConnection._pass_on(self, event)

        return arrive
