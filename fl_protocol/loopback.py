"""A broker in memory: MQTT's promises and its failures, seeded, on a clock that is given.

It keeps retained messages, wills, persistent sessions and unacknowledged deliveries as a real broker
does, and on request loses, repeats, delays and reorders. It is driven from outside: ``deliver_due`` hands
over what is due now, ``next_due`` says when to come back. No threads. A connection exists, for publishing
and receiving alike, from the moment its ``Connected`` is handed over, and not before.
"""

import functools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fl_protocol.agenda import Agenda
from fl_protocol.clock import Clock
from fl_protocol.subscriptions import Subscriptions, matches
from fl_protocol.transport import (
    Connected,
    Delivered,
    Disconnected,
    Received,
    Traffic,
    TransportEvent,
    Will,
)

__all__ = ["MAX_QUEUED", "Faults", "Link", "LoopbackBroker", "LoopbackTransport", "matches"]

MAX_QUEUED = 10_000
"""Messages kept for a session that is away; the newest are dropped beyond, and counted as lost."""

MAX_INFLIGHT = 4096
"""Messages sent to a session that acknowledges by hand before it acknowledges one of them."""


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


_NO_FAULTS = Faults()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a client's messages travel over, one after the other: seconds each way, and bytes a second
    (0: no bound)."""

    latency_s: float = 0.0
    up_bytes_s: float = 0.0
    down_bytes_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Session:
    clean: bool
    filters: list[str] = field(default_factory=list)
    queue: list[Received] = field(default_factory=list)
    """Waits for a connection."""
    unacknowledged: dict[int, Received] | None = None
    """Waits for its receiver's word, who acknowledges by hand."""
    held: deque[Received] | None = None
    """Waits until something is acknowledged; as much as its senders' windows let come."""
    connection: "LoopbackTransport | None" = None


class LoopbackBroker:
    """One broker. Same seed and same calls, same deliveries."""

    def __init__(self, clock: Clock, *, seed: int = 0, faults: Faults | None = None) -> None:
        self.faults = faults or _NO_FAULTS
        self.lost = 0
        self._clock = clock
        self._random = random.Random(seed)
        self._retained: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._subscriptions: Subscriptions[_Session] = Subscriptions()
        self._pending = Agenda()
        self._sequence = 0

    def connect(
        self,
        client_id: str,
        *,
        will: Callable[[], Will] | None = None,
        clean: bool = True,
        manual_ack: bool = False,
        window: int = 16,
        link: Link | None = None,
        inflight: int = MAX_INFLIGHT,
    ) -> "LoopbackTransport":
        """A transport for ``client_id``, to be started; ``will`` is asked for at each connect. One that
        acknowledges by hand is sent ``inflight`` messages before it acknowledges any."""
        return LoopbackTransport(
            self,
            client_id,
            will=will,
            clean=clean,
            manual_ack=manual_ack,
            window=window,
            link=link,
            inflight=inflight,
        )

    def deliver_due(self) -> int:
        """Hand over everything that is due, and what that causes at once; how many deliveries it made."""
        return self._pending.happen(self._clock.monotonic())

    def next_due(self) -> float | None:
        """Clock time of the next delivery; ``None`` when nothing is under way."""
        return self._pending.next_due()

    def now(self) -> float:
        """Its clock's time."""
        return self._clock.monotonic()

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
            self._subscriptions = Subscriptions()
            self._retained.clear()

    def attach(self, transport: "LoopbackTransport") -> None:
        """Open a session for a transport that starts."""
        before = self._sessions.get(transport.client_id)
        if before is not None and before.connection is not None:
            before.connection.drop("the session was taken over")
        session = self._sessions.get(transport.client_id)
        present = session is not None and not transport.clean
        if session is None or transport.clean:
            if session is not None:
                self._forget(session, list(session.filters))
            session = self._sessions[transport.client_id] = _Session(clean=transport.clean)
        session.connection = transport
        opened, connection = session, transport.connection
        self._later(
            lambda: self._open(opened, transport, connection, present), plain=True, at=transport.answered()
        )

    def detach(self, transport: "LoopbackTransport", *, broken: bool) -> None:
        """Close a session; a broken connection speaks its will."""
        session = self._sessions.get(transport.client_id)
        if session is None or session.connection is not transport:
            return
        session.connection = None
        session.queue[:0] = [*(session.unacknowledged or {}).values(), *(session.held or ())]
        session.unacknowledged = None
        session.held = None
        if session.clean:
            self._forget(session, list(session.filters))
            del self._sessions[transport.client_id]
        if broken and transport.will is not None:
            self.route(transport.will.topic, transport.will.payload, retain=False)

    def route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Take a message in and pass it on, with this broker's faults."""
        if retain and payload:
            self._retained[topic] = payload
        elif retain:
            self._retained.pop(topic, None)
        message = Received(topic, payload, False, 0)
        for session in self._subscriptions.of(topic):
            self._hand(session, message)

    def open_filters(self, transport: "LoopbackTransport", filters: Sequence[str]) -> None:
        """Subscribe, and send what is retained."""
        session = self._sessions[transport.client_id]
        session.filters += [pattern for pattern in filters if pattern not in session.filters]
        for pattern in filters:
            self._subscriptions.add(pattern, session)
        wild = [pattern for pattern in filters if "+" in pattern or "#" in pattern]
        found = {pattern for pattern in filters if pattern in self._retained}
        if wild:
            found |= {topic for topic in self._retained if any(matches(one, topic) for one in wild)}
        for topic in sorted(found):
            self._hand(session, Received(topic, self._retained[topic], True, 0))

    def close_filters(self, transport: "LoopbackTransport", filters: Sequence[str]) -> None:
        """Unsubscribe."""
        self._forget(self._sessions[transport.client_id], filters)

    def settle(self, transport: "LoopbackTransport", token: int) -> None:
        """Forget a delivery that its receiver acknowledged."""
        session = self._sessions.get(transport.client_id)
        if session is not None and session.unacknowledged is not None:
            session.unacknowledged.pop(token, None)
            if session.held:
                self._later(functools.partial(self._release, session), plain=True)

    def confirm(self, transport: "LoopbackTransport", token: int) -> None:
        """Acknowledge a publish."""
        connection = transport.connection
        delivered = functools.partial(LoopbackTransport.delivered, transport, token, connection)
        self._later(delivered, plain=True, at=transport.comes(0))

    def carry(
        self, transport: "LoopbackTransport", token: int, topic: str, payload: bytes, *, retain: bool
    ) -> None:
        """Take a publish in when its link has carried it here, unless that connection has ended by then."""
        connection = transport.connection

        def arrive() -> None:
            if transport.connected and transport.connection == connection:
                self.confirm(transport, token)
                self.route(topic, payload, retain=retain)

        self._later(arrive, plain=True, at=transport.goes(len(topic) + len(payload)))

    def _forget(self, session: _Session, filters: Sequence[str]) -> None:
        for pattern in filters:
            if pattern in session.filters:
                session.filters.remove(pattern)
            self._subscriptions.remove(pattern, session)

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
        faults = self.faults
        if faults is not _NO_FAULTS and self._random.random() < faults.lose:
            self.lost += 1
            return
        connection = session.connection
        at = 0.0 if connection is None else connection.comes(len(message.topic) + len(message.payload))
        deliver = functools.partial(LoopbackBroker._deliver, self, session, message)
        self._later(deliver, at=at)
        if faults is not _NO_FAULTS and self._random.random() < faults.repeat:
            self._later(deliver, at=at)

    def _deliver(self, session: _Session, message: Received) -> None:
        transport = session.connection
        if transport is None or not transport.connected:
            if len(session.queue) < MAX_QUEUED:
                session.queue.append(message)
            else:
                self.lost += 1
            return
        if not transport.manual_ack:
            transport.emit(message)
            return
        if session.held is None:
            session.held = deque()
        session.held.append(message)
        self._release(session)

    def _release(self, session: _Session) -> None:
        """Send what is held, as far as the window of unacknowledged messages has room."""
        transport = session.connection
        if session.unacknowledged is None:
            session.unacknowledged = {}
        while transport is not None and session.held and len(session.unacknowledged) < transport.inflight:
            message = session.held.popleft()
            self._sequence += 1
            numbered = Received(message.topic, message.payload, message.retained, self._sequence)
            session.unacknowledged[numbered.token] = numbered
            transport.emit(numbered)

    def _later(self, call: Callable[[], None], *, plain: bool = False, at: float = 0.0) -> None:
        """``at``: the time before which a link does not bring it."""
        now = self._clock.monotonic()
        due = at if at > now else now
        if not plain and self.faults is not _NO_FAULTS:
            low, high = self.faults.delay_s
            due += self._random.uniform(low, high)
            if self._random.random() < self.faults.reorder:
                due += self._random.uniform(0.0, max(high, 1.0))
        self._pending.plan(due, call)


class LoopbackTransport:
    """A connection to a ``LoopbackBroker``; see ``fl_protocol.transport.Transport``."""

    __slots__ = (
        "_ask_will",
        "_attached",
        "_broker",
        "_free_down",
        "_free_up",
        "_link",
        "_receive",
        "_received",
        "_sent",
        "_token",
        "_under_way",
        "_window",
        "clean",
        "client_id",
        "connected",
        "connection",
        "inflight",
        "manual_ack",
        "will",
    )

    def __init__(
        self,
        broker: LoopbackBroker,
        client_id: str,
        *,
        will: Callable[[], Will] | None,
        clean: bool,
        manual_ack: bool,
        window: int,
        link: Link | None = None,
        inflight: int = MAX_INFLIGHT,
    ) -> None:
        self.client_id = client_id
        self.will: Will | None = None
        self.clean = clean
        self.manual_ack = manual_ack
        self.inflight = inflight
        self.connected = False
        self.connection = 0
        """Counts the connections of this transport: what belongs to an older one is void."""
        self._ask_will = will
        self._broker = broker
        self._receive: Callable[[TransportEvent], None] | None = None
        self._attached = False
        self._window = window
        self._link = link
        self._free_up = self._free_down = 0.0
        """Until when the link is busy, each way."""
        self._under_way = 0
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
        if not self.connected or self._under_way >= self._window:
            return None
        self._token += 1
        self._under_way += 1
        self._sent += len(topic) + len(payload)
        if self._link is None:
            self._broker.confirm(self, self._token)
            self._broker.route(topic, payload, retain=retain)
        else:
            self._broker.carry(self, self._token, topic, payload, retain=retain)
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
            self.tell(Disconnected(reason))

    def stop(self) -> None:
        """Disconnect cleanly, for good unless started anew."""
        if self._attached:
            self._close(broken=False)
        self._receive = None

    def traffic(self) -> Traffic:
        """Topic and payload bytes: there is no socket to count at."""
        return Traffic(self._sent, self._received)

    def goes(self, size: int) -> float:
        """When ``size`` bytes that leave now are at the broker."""
        link = self._link
        if link is None:
            return 0.0
        now = self._broker.now()
        self._free_up = max(self._free_up, now) + (size / link.up_bytes_s if link.up_bytes_s else 0.0)
        return self._free_up + link.latency_s

    def answered(self) -> float:
        """When an answer to what is said now is here."""
        return self.goes(0) + (self._link.latency_s if self._link is not None else 0.0)

    def comes(self, size: int) -> float:
        """When ``size`` bytes that the broker sends now are here."""
        link = self._link
        if link is None:
            return 0.0
        now = self._broker.now()
        self._free_down = max(self._free_down, now) + (size / link.down_bytes_s if link.down_bytes_s else 0.0)
        return self._free_down + link.latency_s

    def opened(self, connection: int, present: bool) -> bool:
        """The broker took this connection, unless it has ended by now."""
        if not self._attached or connection != self.connection:
            return False
        self.connected = True
        self.emit(Connected(present))
        return True

    def delivered(self, token: int, connection: int) -> None:
        """The broker has a message of this connection."""
        if connection == self.connection and self._under_way:
            self._under_way -= 1
            self.emit(Delivered(token))

    def emit(self, event: TransportEvent) -> None:
        """Pass an event on, unless this connection is gone."""
        if self.connected and self._receive is not None:
            if isinstance(event, Received):
                self._received += len(event.topic) + len(event.payload)
            self.tell(event)

    def tell(self, event: TransportEvent) -> None:
        """Give an event to whoever receives, if anybody does."""
        if self._receive is not None:
            self._receive(event)

    def _close(self, *, broken: bool) -> None:
        self._attached = self.connected = False
        self._under_way = 0
        self._broker.detach(self, broken=broken)
