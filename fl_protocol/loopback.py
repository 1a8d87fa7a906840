"""A broker in memory: MQTT's promises and its failures, seeded, on a clock that is given.

It keeps retained messages, wills, persistent sessions and unacknowledged deliveries as a real broker
does, and on request loses, repeats, delays and reorders. It is driven from outside: ``deliver_due`` hands
over what is due now, ``next_due`` says when to come back. No threads. A connection exists, for publishing
and receiving alike, from the moment its ``Connected`` is handed over, and not before.
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fl_protocol.clock import Clock
from fl_protocol.transport import (
    Connected,
    Delivered,
    Disconnected,
    Received,
    Traffic,
    TransportEvent,
    Will,
)

__all__ = ["MAX_QUEUED", "Faults", "LoopbackBroker", "LoopbackTransport", "matches"]

MAX_QUEUED = 10_000
"""Messages kept for a session that is away; the newest are dropped beyond, and counted as lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong: probabilities per message, and delay bounds in seconds.

    ``lose`` drops a message although it was acknowledged, as brokers do; ``repeat`` delivers it twice;
    ``reorder`` lets it overtake or be overtaken by up to ``delay_s`` again.
    """

    lose: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True)
class _Session:
    clean: bool
    filters: set[str] = field(default_factory=set)
    queue: list[Received] = field(default_factory=list)
    unacknowledged: dict[int, Received] = field(default_factory=dict)
    connection: "LoopbackTransport | None" = None


class LoopbackBroker:
    """One broker. Same seed and same calls, same deliveries."""

    def __init__(self, clock: Clock, *, seed: int = 0, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.lost = 0
        self._clock = clock
        self._random = random.Random(seed)
        self._retained: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._pending: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def connect(
        self,
        client_id: str,
        *,
        will: Callable[[], Will] | None = None,
        clean: bool = True,
        manual_ack: bool = False,
        window: int = 16,
    ) -> "LoopbackTransport":
        """A transport for ``client_id``, to be started; ``will`` is asked for at each connect."""
        return LoopbackTransport(
            self, client_id, will=will, clean=clean, manual_ack=manual_ack, window=window
        )

    def deliver_due(self) -> int:
        """Hand over everything that is due, and what that causes at once; how many deliveries it made."""
        count = 0
        while self._pending and self._pending[0][0] <= self._clock.monotonic():
            heapq.heappop(self._pending)[2]()
            count += 1
        return count

    def next_due(self) -> float | None:
        """Clock time of the next delivery; ``None`` when nothing is under way."""
        return self._pending[0][0] if self._pending else None

    def restart(self, *, keep_store: bool) -> None:
        """Die at once and come back: what was under way is lost and no will is spoken; without its store
        all sessions and retained messages are gone too."""
        self._pending.clear()
        connections = [session.connection for session in self._sessions.values()]
        for connection in connections:
            if connection is not None:
                connection.drop("the broker was killed", spoken=False)
        if not keep_store:
            self._sessions.clear()
            self._retained.clear()

    def attach(self, transport: "LoopbackTransport") -> None:
        """Open a session for a transport that starts."""
        before = self._sessions.get(transport.client_id)
        if before is not None and before.connection is not None:
            before.connection.drop("the session was taken over")
        session = self._sessions.get(transport.client_id)
        present = session is not None and not transport.clean
        if session is None or transport.clean:
            session = self._sessions[transport.client_id] = _Session(clean=transport.clean)
        session.connection = transport
        opened, connection = session, transport.connection
        self._later(lambda: self._open(opened, transport, connection, present), plain=True)

    def detach(self, transport: "LoopbackTransport", *, broken: bool) -> None:
        """Close a session; a broken connection speaks its will."""
        session = self._sessions.get(transport.client_id)
        if session is None or session.connection is not transport:
            return
        session.connection = None
        session.queue[:0] = session.unacknowledged.values()
        session.unacknowledged.clear()
        if session.clean:
            del self._sessions[transport.client_id]
        if broken and transport.will is not None:
            self.route(transport.will.topic, transport.will.payload, retain=False)

    def route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Take a message in and pass it on, with this broker's faults."""
        if retain and payload:
            self._retained[topic] = payload
        elif retain:
            self._retained.pop(topic, None)
        for session in list(self._sessions.values()):
            if any(matches(pattern, topic) for pattern in session.filters):
                self._hand(session, Received(topic, payload, False, 0))

    def open_filters(self, transport: "LoopbackTransport", filters: Sequence[str]) -> None:
        """Subscribe, and send what is retained."""
        session = self._sessions[transport.client_id]
        session.filters.update(filters)
        for topic, payload in sorted(self._retained.items()):
            if any(matches(pattern, topic) for pattern in filters):
                self._hand(session, Received(topic, payload, True, 0))

    def close_filters(self, transport: "LoopbackTransport", filters: Sequence[str]) -> None:
        """Unsubscribe."""
        self._sessions[transport.client_id].filters.difference_update(filters)

    def settle(self, transport: "LoopbackTransport", token: int) -> None:
        """Forget a delivery that its receiver acknowledged."""
        session = self._sessions.get(transport.client_id)
        if session is not None:
            session.unacknowledged.pop(token, None)

    def confirm(self, transport: "LoopbackTransport", token: int) -> None:
        """Acknowledge a publish."""
        connection = transport.connection
        self._later(lambda: transport.delivered(token, connection), plain=True)

    def _open(
        self, session: _Session, transport: "LoopbackTransport", connection: int, present: bool
    ) -> None:
        """Answer CONNECT, unless that connection has ended by now; then send what waited."""
        if session.connection is not transport or not transport.opened(connection, present):
            return
        waiting = list(session.queue)
        session.queue.clear()
        for message in waiting:
            self._hand(session, message)

    def _hand(self, session: _Session, message: Received) -> None:
        if self._random.random() < self.faults.lose:
            self.lost += 1
            return
        for _ in range(2 if self._random.random() < self.faults.repeat else 1):
            self._later(lambda: self._deliver(session, message))

    def _deliver(self, session: _Session, message: Received) -> None:
        transport = session.connection
        if transport is None or not transport.connected:
            if len(session.queue) < MAX_QUEUED:
                session.queue.append(message)
            else:
                self.lost += 1
            return
        self._sequence += 1
        numbered = Received(message.topic, message.payload, message.retained, self._sequence)
        if transport.manual_ack:
            session.unacknowledged[numbered.token] = numbered
        transport.emit(numbered)

    def _later(self, call: Callable[[], None], *, plain: bool = False) -> None:
        low, high = (0.0, 0.0) if plain else self.faults.delay_s
        delay = self._random.uniform(low, high)
        if not plain and self._random.random() < self.faults.reorder:
            delay += self._random.uniform(0.0, max(high, 1.0))
        self._sequence += 1
        heapq.heappush(self._pending, (self._clock.monotonic() + delay, self._sequence, call))


class LoopbackTransport:
    """A connection to a ``LoopbackBroker``; see ``fl_protocol.transport.Transport``."""

    def __init__(
        self,
        broker: LoopbackBroker,
        client_id: str,
        *,
        will: Callable[[], Will] | None,
        clean: bool,
        manual_ack: bool,
        window: int,
    ) -> None:
        self.client_id = client_id
        self.will: Will | None = None
        self.clean = clean
        self.manual_ack = manual_ack
        self.connected = False
        self.connection = 0
        """Counts the connections of this transport: what belongs to an older one is void."""
        self._ask_will = will
        self._broker = broker
        self._receive: Callable[[TransportEvent], None] | None = None
        self._attached = False
        self._window = window
        self._under_way: set[int] = set()
        self._token = 0
        self._sent = 0
        self._received = 0

    def start(self, receive: Callable[[TransportEvent], None]) -> None:
        """Ask for a connection; ``Connected`` comes with the broker's next deliveries."""
        self._receive = receive
        self._attached = True
        self.connection += 1
        self.will = self._ask_will() if self._ask_will is not None else None
        self._broker.attach(self)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send; ``None`` while disconnected or while the window is full."""
        if not self.connected or len(self._under_way) >= self._window:
            return None
        self._token += 1
        self._under_way.add(self._token)
        self._sent += len(topic) + len(payload)
        self._broker.confirm(self, self._token)
        self._broker.route(topic, payload, retain=retain)
        return self._token

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe; nothing happens while disconnected."""
        if self.connected:
            self._broker.open_filters(self, filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe; nothing happens while disconnected."""
        if self.connected:
            self._broker.close_filters(self, filters)

    def acknowledge(self, token: int) -> None:
        """Settle a delivery of this connection."""
        if self.connected:
            self._broker.settle(self, token)

    def renew(self) -> None:
        """Break the connection and connect again; one that was dropped stays so until ``reconnect``."""
        if self._attached:
            self.drop("renewed by us")
            self.reconnect()

    def reconnect(self) -> None:
        """Connect again after ``drop``: the loopback broker never does so by itself."""
        if not self._attached and self._receive is not None:
            self.start(self._receive)

    def drop(self, reason: str, *, spoken: bool = True) -> None:
        """Break the connection, as a bad link does; ``spoken`` says whether the broker speaks the will."""
        if self._attached:
            self._close(broken=spoken)
            if self._receive is not None:
                self._receive(Disconnected(reason))

    def stop(self) -> None:
        """Disconnect cleanly, for good unless started anew."""
        if self._attached:
            self._close(broken=False)
        self._receive = None

    def traffic(self) -> Traffic:
        """Topic and payload bytes: there is no socket to count at."""
        return Traffic(self._sent, self._received)

    def opened(self, connection: int, present: bool) -> bool:
        """The broker took this connection, unless it has ended by now."""
        if not self._attached or connection != self.connection:
            return False
        self.connected = True
        self.emit(Connected(present))
        return True

    def delivered(self, token: int, connection: int) -> None:
        """The broker has a message of this connection."""
        if connection == self.connection and token in self._under_way:
            self._under_way.discard(token)
            self.emit(Delivered(token))

    def emit(self, event: TransportEvent) -> None:
        """Pass an event on, unless this connection is gone."""
        if self.connected and self._receive is not None:
            if isinstance(event, Received):
                self._received += len(event.topic) + len(event.payload)
            self._receive(event)

    def _close(self, *, broken: bool) -> None:
        self._attached = self.connected = False
        self._under_way.clear()
        self._broker.detach(self, broken=broken)


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT filter with ``+`` and ``#`` matches a topic (MQTT 3.1.1, section 4.7)."""
    want, have = pattern.split("/"), topic.split("/")
    for index, level in enumerate(want):
        if level == "#":
            return True
        if index >= len(have) or level not in ("+", have[index]):
            return False
    return len(want) == len(have)
