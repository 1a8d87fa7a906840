"""A broker in memory: MQTT's promises and its failures, seeded, on a clock that is given.

It keeps retained messages, wills, persistent sessions and unacknowledged deliveries as a real broker
does, and on request loses, repeats, delays and reorders. It is driven from outside: ``deliver_due`` hands
over what is due now, ``next_due`` says when to come back. No threads.
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

__all__ = ["Faults", "LoopbackBroker", "LoopbackTransport", "matches"]


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
        self, client_id: str, *, will: Will | None = None, clean: bool = True, manual_ack: bool = False
    ) -> "LoopbackTransport":
        """A transport for ``client_id``; it connects when it is started."""
        return LoopbackTransport(self, client_id, will=will, clean=clean, manual_ack=manual_ack)

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
        """Die at once and come back; without its store all sessions and retained messages are gone."""
        for session in list(self._sessions.values()):
            if session.connection is not None:
                session.connection.drop("the broker was killed")
        self._pending.clear()
        if not keep_store:
            self._sessions.clear()
            self._retained.clear()

    def attach(self, transport: "LoopbackTransport") -> None:
        """Open a session for a transport that starts."""
        session = self._sessions.get(transport.client_id)
        present = session is not None and not transport.clean
        if session is not None and session.connection is not None:
            session.connection.drop("the session was taken over")
        if session is None or transport.clean:
            session = self._sessions[transport.client_id] = _Session()
        session.connection = transport
        self._later(lambda: transport.emit(Connected(present)), plain=True)
        waiting = [*session.unacknowledged.values(), *session.queue]
        session.unacknowledged.clear()
        session.queue.clear()
        for message in waiting:
            self._hand(session, message)

    def detach(self, transport: "LoopbackTransport", *, broken: bool) -> None:
        """Close a session; a broken connection speaks its will."""
        session = self._sessions.get(transport.client_id)
        if session is None or session.connection is not transport:
            return
        session.connection = None
        if transport.clean:
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
        self._later(lambda: transport.emit(Delivered(token)), plain=True)

    def _hand(self, session: _Session, message: Received) -> None:
        if self._random.random() < self.faults.lose:
            self.lost += 1
            return
        for _ in range(2 if self._random.random() < self.faults.repeat else 1):
            self._later(lambda: self._deliver(session, message))

    def _deliver(self, session: _Session, message: Received) -> None:
        transport = session.connection
        if transport is None:
            session.queue.append(message)
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
        self, broker: LoopbackBroker, client_id: str, *, will: Will | None, clean: bool, manual_ack: bool
    ) -> None:
        self.client_id = client_id
        self.will = will
        self.clean = clean
        self.manual_ack = manual_ack
        self._broker = broker
        self._receive: Callable[[TransportEvent], None] | None = None
        self._connected = False
        self._token = 0
        self._sent = 0
        self._received = 0

    def start(self, receive: Callable[[TransportEvent], None]) -> None:
        """Connect now."""
        self._receive = receive
        self._connected = True
        self._broker.attach(self)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send; ``None`` while disconnected."""
        if not self._connected:
            return None
        self._token += 1
        self._sent += len(topic) + len(payload)
        self._broker.route(topic, payload, retain=retain)
        self._broker.confirm(self, self._token)
        return self._token

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe; nothing happens while disconnected."""
        if self._connected:
            self._broker.open_filters(self, filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe; nothing happens while disconnected."""
        if self._connected:
            self._broker.close_filters(self, filters)

    def acknowledge(self, token: int) -> None:
        """Settle a delivery."""
        self._broker.settle(self, token)

    def renew(self) -> None:
        """Break the connection and connect again."""
        self.drop("renewed by us")
        self.reconnect()

    def reconnect(self) -> None:
        """Connect again after ``drop``: the loopback broker never does so by itself."""
        if not self._connected and self._receive is not None:
            self.start(self._receive)

    def drop(self, reason: str) -> None:
        """Break the connection, as a bad link does."""
        if self._connected:
            self._connected = False
            self._broker.detach(self, broken=True)
            if self._receive is not None:
                self._receive(Disconnected(reason))

    def stop(self) -> None:
        """Disconnect cleanly."""
        if self._connected:
            self._connected = False
            self._broker.detach(self, broken=False)

    def traffic(self) -> Traffic:
        """Topic and payload bytes: there is no socket to count at."""
        return Traffic(self._sent, self._received)

    def emit(self, event: TransportEvent) -> None:
        """Pass an event on, unless this connection is gone."""
        if self._connected and self._receive is not None:
            if isinstance(event, Received):
                self._received += len(event.topic) + len(event.payload)
            self._receive(event)


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT filter with ``+`` and ``#`` matches a topic (MQTT 3.1.1, section 4.7)."""
    want, have = pattern.split("/"), topic.split("/")
    for index, level in enumerate(want):
        if level == "#":
            return True
        if index >= len(have) or level not in ("+", have[index]):
            return False
    return len(want) == len(have)
