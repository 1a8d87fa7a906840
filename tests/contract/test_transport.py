"""One suite for every Transport: the loopback broker in memory, paho and our own connection against two real
brokers."""

import threading
import time
from collections.abc import Callable

import pytest

from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_protocol.clock import ManualClock
from fl_protocol.loopback import LoopbackBroker
from fl_protocol.transport import Connected, Delivered, Disconnected, Received, Will

PATIENCE_S = 20.0


class Peer:
    """A transport and everything it has reported."""

    def __init__(self, transport, turn: Callable[[float], None]) -> None:
        self.transport = transport
        self.events: list = []
        self._turn = turn

    def start(self) -> "Peer":
        """Start, and wait for the connection."""
        self.transport.start(self.events.append)
        self.expect(Connected)
        return self

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, the broker going on."""
        assert self.comes(condition, PATIENCE_S), f"waited in vain: {self.events[-30:]}"

    def comes(self, condition: Callable[[], bool], patience_s: float) -> bool:
        """Whether a condition comes to hold, the broker going on."""
        until = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() >= until:
                return False
            self._turn(0.01)
        return True

    def expect(self, kind, where: Callable = lambda event: True, *, count: int = 1) -> list:
        """Wait until ``count`` events of a kind are there, and return them."""

        def found() -> list:
            return [event for event in list(self.events) if isinstance(event, kind) and where(event)]

        self.wait(lambda: len(found()) >= count)
        return found()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Publish, and wait until the broker has it."""
        token = self.transport.publish(topic, payload, retain=retain)
        assert token is not None
        self.expect(Delivered, lambda event: event.token == token)
        return token

    def subscribed(self, *filters: str) -> "Peer":
        """Subscribe, and wait until that holds: a message of our own comes through."""
        probe = f"probe/{id(self)}/{len(self.events)}"
        self.transport.subscribe([*filters, probe])
        # amqtt may serve a message before the subscription that was sent ahead of it: ask again.
        for _ in range(int(PATIENCE_S)):
            self.publish(probe, b"?")
            if self.comes(lambda: bool(self.payloads(probe)), 1.0):
                break
        else:
            raise AssertionError(f"no subscription: {self.events[-30:]}")
        self.transport.unsubscribe([probe])
        return self

    def payloads(self, topic: str) -> list[bytes]:
        """What came on a topic so far."""
        return [
            event.payload for event in self.events if isinstance(event, Received) and event.topic == topic
        ]


class LoopbackBench:
    """The broker in memory, driven by whoever waits."""

    keeps_sessions = True
    ends_older_twins = True

    def __init__(self) -> None:
        self.broker = LoopbackBroker(ManualClock(), seed=1)
        self.peers: list[Peer] = []

    def peer(self, client_id: str, **options) -> Peer:
        """A transport that is not started yet."""
        peer = Peer(self.broker.connect(client_id, **options), lambda seconds: self._turn())
        self.peers.append(peer)
        return peer

    def restart_broker(self) -> None:
        """Kill the broker and bring it back, empty."""
        self.broker.restart(keep_store=False)

    def _turn(self) -> None:
        for peer in self.peers:
            if isinstance(peer.events[-1:] and peer.events[-1], Disconnected):
                peer.transport.reconnect()
        self.broker.deliver_due()

    def close(self) -> None:
        """Stop all."""
        for peer in self.peers:
            peer.transport.stop()


class MqttBench:
    """A real broker, and paho or the connection for ``many`` messages."""

    def __init__(self, process, *, many: bool) -> None:
        self.process = process
        self._many = many
        # amqtt keeps no session of a client without a password.
        self.keeps_sessions = process.kind == "mosquitto"
        # amqtt serves the new one, and leaves the old one open, unheard.
        self.ends_older_twins = process.kind == "mosquitto"
        self.peers: list[Peer] = []
        self._pause = threading.Event()

    def peer(self, client_id: str, **options) -> Peer:
        """A transport that is not started yet."""
        transport = MqttTransport(
            BrokerAddress.parse(self.process.url), client_id, paho=not self._many, **options
        )
        peer = Peer(transport, self._pause.wait)
        self.peers.append(peer)
        return peer

    def restart_broker(self) -> None:
        """Kill -9 the broker and bring it back, empty."""
        self.process.kill()
        self.process.start()

    def close(self) -> None:
        """Stop all."""
        for peer in self.peers:
            peer.transport.stop()


@pytest.fixture(scope="module", params=["loopback", "mosquitto", "amqtt", "many-mosquitto", "many-amqtt"])
def implementation(request):
    """Which transport, and which broker."""
    return request.param


@pytest.fixture
def bench(implementation, broker_of):
    """A broker and a way to make peers on it."""
    many, _, broker = implementation.rpartition("-")
    bench = LoopbackBench() if broker == "loopback" else MqttBench(broker_of(broker), many=bool(many))
    yield bench
    bench.close()


def test_a_message_arrives_and_its_publish_is_acknowledged(bench):
    """The plain way: topic and payload arrive unchanged, not marked as retained."""
    reader = bench.peer("reader").start().subscribed("t/+")
    writer = bench.peer("writer").start()
    writer.publish("t/one", bytes(range(256)))
    (event,) = reader.expect(Received, lambda event: event.topic == "t/one")
    assert event.payload == bytes(range(256))
    assert not event.retained


def test_nothing_is_sent_without_a_connection(bench):
    """Before ``start`` and after ``stop`` a publish says so instead of queueing."""
    peer = bench.peer("quiet")
    assert peer.transport.publish("t", b"") is None
    peer.start()
    peer.transport.stop()
    assert peer.transport.publish("t", b"") is None


def test_a_clean_session_is_never_present(bench):
    """A device starts from nothing at every connect."""
    peer = bench.peer("clean").start()
    peer.transport.renew()
    assert [event.session_present for event in peer.expect(Connected, count=2)] == [False, False]


def test_a_retained_message_is_read_back_marked_and_goes_with_an_empty_one(bench):
    """The broker is a cache of retained topics that a later subscriber reads."""
    writer = bench.peer("writer").start()
    writer.publish("kept/a", b"first", retain=True)
    writer.publish("kept/a", b"second", retain=True)
    reader = bench.peer("reader").start()
    reader.transport.subscribe(["kept/a"])
    (event,) = reader.expect(Received)
    assert (event.topic, event.payload, event.retained) == ("kept/a", b"second", True)
    writer.publish("kept/a", b"", retain=True)
    late = bench.peer("late").start().subscribed("kept/a")
    assert late.payloads("kept/a") == []


def test_subscribing_again_brings_the_retained_message_again(bench):
    """A device that lost a chunk takes the subscription back and asks once more."""
    peer = bench.peer("again").start()
    peer.publish("kept/b", b"here", retain=True)
    peer.transport.subscribe(["kept/b"])
    peer.expect(Received, lambda event: event.retained)
    peer.transport.unsubscribe(["kept/b"])
    peer.transport.subscribe(["kept/b"])
    peer.expect(Received, lambda event: event.retained, count=2)
    peer.publish("kept/b", b"", retain=True)


def test_a_broken_connection_speaks_its_will_and_each_connection_has_its_own(bench):
    """The will carries the session's random id, so it is asked for at every connect."""
    reader = bench.peer("reader").start().subscribed("will")
    wills = iter([b"session 1", b"session 2", b"session 3"])
    device = bench.peer("device", will=lambda: Will("will", next(wills))).start()
    device.transport.renew()
    reader.expect(Received, lambda event: event.payload == b"session 1")
    device.expect(Connected, count=2)
    device.transport.renew()
    reader.expect(Received, lambda event: event.payload == b"session 2")
    device.expect(Connected, count=3)


def test_a_clean_stop_speaks_no_will(bench):
    """Who leaves in order says farewell itself; the broker stays silent."""
    reader = bench.peer("reader").start().subscribed("will", "after")
    device = bench.peer("device", will=lambda: Will("will", b"gone")).start()
    device.publish("after", b"farewell")
    device.transport.stop()
    bench.peer("other").start().publish("after", b"later")
    reader.expect(Received, lambda event: event.payload == b"later")
    assert reader.payloads("will") == []
    assert reader.payloads("after") == [b"farewell", b"later"]


def test_what_was_not_acknowledged_comes_again_on_a_kept_session(bench):
    """The coordinator acknowledges after its commit: what it had not committed is delivered again."""
    if not bench.keeps_sessions:
        pytest.skip("amqtt keeps no session of a client without a password")
    keeper = bench.peer("keeper", clean=False, manual_ack=True).start().subscribed("work")
    writer = bench.peer("writer").start()
    writer.publish("work", b"one")
    writer.publish("work", b"two")
    first, _ = keeper.expect(Received, lambda event: event.topic == "work", count=2)
    keeper.transport.acknowledge(first.token)
    # The acknowledgement is behind us once a later publish of the same connection has come through.
    keeper.publish("sync", b"")
    keeper.transport.renew()
    assert keeper.expect(Connected, count=2)[1].session_present
    keeper.expect(Received, lambda event: event.topic == "work", count=3)
    writer.publish("work", b"three")
    keeper.expect(Received, lambda event: event.payload == b"three")
    assert keeper.payloads("work") == [b"one", b"two", b"two", b"three"]


def test_a_token_of_an_older_connection_acknowledges_nothing(bench):
    """Message numbers begin anew with each connection: an old token must not settle a new message."""
    if not bench.keeps_sessions:
        pytest.skip("amqtt keeps no session of a client without a password")
    keeper = bench.peer("careful keeper", clean=False, manual_ack=True).start().subscribed("task")
    bench.peer("writer").start().publish("task", b"one")
    (old,) = keeper.expect(Received, lambda event: event.topic == "task")
    keeper.transport.renew()
    keeper.expect(Received, lambda event: event.topic == "task", count=2)
    keeper.transport.acknowledge(old.token)
    keeper.publish("sync", b"")
    keeper.transport.renew()
    keeper.expect(Received, lambda event: event.topic == "task", count=3)


def test_renew_connects_anew(bench):
    """The connection ends, the next one comes by itself, and it works."""
    peer = bench.peer("renewed").start()
    peer.transport.renew()
    (ended,) = peer.expect(Disconnected)
    assert not ended.permanent
    peer.expect(Connected, count=2)
    peer.subscribed("t")
    kinds = [type(event) for event in peer.events if isinstance(event, Connected | Disconnected)]
    assert kinds == [Connected, Disconnected, Connected]


def test_a_transport_outlives_its_broker(bench):
    """The broker is killed and comes back with an empty store: the transport connects again."""
    peer = bench.peer("patient").start().subscribed("t")
    peer.publish("kept/c", b"gone with the store", retain=True)
    bench.restart_broker()
    peer.expect(Disconnected)
    assert not peer.expect(Connected, count=2)[1].session_present
    peer.subscribed("kept/c", "t")
    peer.publish("t", b"again")
    peer.expect(Received, lambda event: event.payload == b"again")
    assert peer.payloads("kept/c") == []


def test_a_second_connection_of_the_same_name_takes_over(bench):
    """One client id, one connection: the older one ends."""
    first = bench.peer("twin").start()
    second = bench.peer("twin").start()
    if bench.ends_older_twins:
        first.expect(Disconnected)
    first.transport.stop()
    second.wait(lambda: second.transport.publish("t", b"") is not None)


def test_a_full_window_takes_nothing_more_until_it_moves(bench):
    """What the window does not hold is not sent, and nothing of it is lost or sent twice."""
    reader = bench.peer("reader").start().subscribed("w")
    writer = bench.peer("writer", window=4).start()
    waiting = [bytes([number]) for number in range(40)]
    sent = 0
    while waiting:
        if writer.transport.publish("w", waiting[0]) is None:
            writer.expect(Delivered, count=sent - 3)
        else:
            sent += 1
            del waiting[0]
    reader.expect(Received, lambda event: event.topic == "w", count=40)
    assert reader.payloads("w") == [bytes([number]) for number in range(40)]
    tokens = [event.token for event in writer.expect(Delivered, count=40)]
    assert len(set(tokens)) == 40


def test_more_filters_than_one_packet_may_hold(bench):
    """Hosted brokers take eight a packet; a caller need not count."""
    filters = [f"many/{number}" for number in range(20)]
    reader = bench.peer("reader").start().subscribed(*filters)
    for pattern in filters:
        reader.publish(pattern, b"x")
    reader.expect(Received, lambda event: event.topic.startswith("many/"), count=20)
    reader.transport.unsubscribe(filters)
    reader.publish("many/3", b"unheard")
    reader.subscribed("end")
    assert reader.payloads("many/3") == [b"x"]


def test_traffic_counts_what_was_sent_and_received_over_all_connections(bench):
    """The figure survives a new connection and never falls."""
    peer = bench.peer("counted").start().subscribed("t")
    peer.publish("t", bytes(10_000))
    peer.expect(Received, lambda event: event.topic == "t")
    before = peer.transport.traffic()
    assert before.sent >= 10_000
    assert before.received >= 10_000
    peer.transport.renew()
    peer.expect(Connected, count=2)
    after = peer.transport.traffic()
    assert after.sent >= before.sent
    assert after.received >= before.received
