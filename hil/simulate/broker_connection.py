"""A virtual device's connection to a real broker: one socket of its own, in the simulation's one thread."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fl_io.connection import ConnectionTerms
from fl_io.mqtt import MAX_FILTERS
from fl_io.stream_connection import StreamConnection
from fl_protocol.transport import Connected, Delivered, Disconnected, Received, Traffic, TransportEvent
from hil.simulate.transport import Caller

if TYPE_CHECKING:
    from hil.simulate.broker_medium import BrokerMedium

__all__ = ["DeviceConnection"]


class DeviceConnection:
    """See ``fl_protocol.transport.Transport``. It is opened and served by the medium, and says so to it when
    there is something to send. Bytes are those that went through the socket, without TLS's and TCP's."""

    __slots__ = (
        "_connection",
        "_counted",
        "_generation",
        "_medium",
        "_meter",
        "_receive",
        "_terms",
        "_traffic",
        "_under_way",
        "_will",
        "_woken",
        "tries",
    )

    def __init__(self, medium: "BrokerMedium", terms: ConnectionTerms, caller: Caller) -> None:
        self.tries = 0
        """Attempts since it last stood."""
        self._medium = medium
        self._terms = terms
        self._will = caller.will
        self._woken = caller.woken
        self._meter = caller.meter
        self._receive: Callable[[TransportEvent], None] | None = None
        self._connection: StreamConnection | None = None
        self._generation = 0
        self._under_way = 0
        self._counted = (0, 0)
        self._traffic = (0, 0)

    @property
    def client_id(self) -> str:
        """Its name at the broker."""
        return self._terms.client_id

    @property
    def wanted(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._receive is not None

    @property
    def accepted(self) -> bool:
        """Whether the broker took it."""
        return self._connection is not None and self._connection.accepted

    @property
    def under_way(self) -> int:
        """Messages that the broker has not acknowledged."""
        return self._under_way

    @property
    def has_to_send(self) -> bool:
        """Whether something waits to be sent."""
        return self._connection is not None and self._connection.has_to_send

    def start(self, receive: Callable[[TransportEvent], None]) -> None:
        """Ask the medium to be opened."""
        self._receive = receive
        self._medium.want(self)

    def open(self) -> int:
        """Connect; the socket's file descriptor. Raises OSError and its kin."""
        self._generation += 1
        self.tries += 1
        connection = StreamConnection(self._terms, self._generation)
        try:
            connection.open(self._will() if self._will is not None else None)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._counted = (0, 0)
        return connection.fileno()

    def serve(self) -> tuple[int, str | None]:
        """Send what waits, read what has come and hand it over; how many events, and why it ended, if so."""
        connection = self._connection
        if connection is None:
            return 0, None
        try:
            ended = connection.serve(0.0)
        except (OSError, ValueError) as error:
            ended = str(error)
        self._count(connection)
        events = 0
        while connection.noted and self._connection is connection:
            self._emit(connection.noted.popleft())
            events += 1
        return events, (connection.refusal or ended) if self._connection is connection else None

    def lost(self, reason: str) -> None:
        """It has ended by itself: let its receiver know."""
        self._close()
        self._emit(Disconnected(f"{self._terms.address}: {reason}"))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send with the next turn of the medium, if connected and the window has room."""
        if self._connection is None:
            return None
        token = self._connection.publish(topic, payload, retain)
        if token is not None:
            self._meter.messages_up += 1
            self._under_way += 1
            self._medium.sent(self, token)
        return token

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe, at most eight filters a packet."""
        if self._connection is not None:
            for at in range(0, len(filters), MAX_FILTERS):
                self._connection.subscribe(filters[at : at + MAX_FILTERS])
            self._medium.speaks(self)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, at most eight filters a packet."""
        if self._connection is not None:
            for at in range(0, len(filters), MAX_FILTERS):
                self._connection.unsubscribe(filters[at : at + MAX_FILTERS])
            self._medium.speaks(self)

    def acknowledge(self, token: int) -> None:
        """Send the PUBACK of a message received on this very connection."""
        if self._connection is not None and self._terms.manual_ack:
            self._connection.acknowledge(token)
            self._medium.speaks(self)

    def renew(self) -> None:
        """Break the connection, and have it opened anew."""
        if self._connection is not None:
            self.lost("renewed by us")
            self._medium.want(self)

    def drop(self, reason: str) -> None:
        """Cut it without a farewell, as a power failure does."""
        if self._connection is not None:
            self.lost(reason)

    def stop(self) -> None:
        """Say farewell, if it stands, and be opened no more."""
        self._receive = None
        if self._connection is not None:
            if self._connection.accepted:
                self._connection.disconnect()
                self.serve()
            self._close()

    def traffic(self) -> Traffic:
        """Bytes over all its connections so far."""
        return Traffic(*self._traffic)

    def _close(self) -> None:
        connection = self._connection
        if connection is not None:
            self._medium.closed(self, connection.fileno(), self._under_way)
            self._connection = None
            self._under_way = 0
            connection.close()

    def _emit(self, event: TransportEvent) -> None:
        if isinstance(event, Delivered):
            self._under_way -= 1
            self._medium.answered(self, event.token)
        elif isinstance(event, Received):
            self._meter.messages_down += 1
        elif isinstance(event, Connected):
            self.tries = 0
            self._medium.opened(self)
        self._pass_on(event)

    def _pass_on(self, event: TransportEvent) -> None:
        if self._receive is not None:
            self._receive(event)
            self._woken()

    def _count(self, connection: StreamConnection) -> None:
        up, down = connection.bytes_sent, connection.bytes_received
        more_up, more_down = up - self._counted[0], down - self._counted[1]
        self._counted = up, down
        self._traffic = self._traffic[0] + more_up, self._traffic[1] + more_down
        self._meter.up += more_up
        self._meter.down += more_down
