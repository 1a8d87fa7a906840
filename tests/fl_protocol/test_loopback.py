"""The broker in memory: MQTT's promises, and its failures at a seeded choice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.clock import ManualClock
from fl_protocol.loopback import MAX_QUEUED, Faults, LoopbackBroker, matches
from fl_protocol.transport import Connected, Delivered, Disconnected, Received, Will


def started(broker, client_id, **options):
    """A connected transport, and what it hears."""
    transport, events = broker.connect(client_id, **options), []
    transport.start(events.append)
    broker.deliver_due()
    return transport, events


def payloads(events) -> list[bytes]:
    """The payloads among events."""
    return [event.payload for event in events if isinstance(event, Received)]


@pytest.fixture
def clock():
    """Time that stands still."""
    return ManualClock()


@pytest.fixture
def broker(clock):
    """A broker without faults."""
    return LoopbackBroker(clock)


def test_nothing_happens_before_the_broker_answers(broker):
    """As with a real one: no publish, no subscription, until Connected was handed over."""
    transport, events = broker.connect("early"), []
    transport.start(events.append)
    assert transport.publish("t", b"") is None
    broker.deliver_due()
    assert events == [Connected(False)]
    assert transport.publish("t", b"") == 1
    assert broker.deliver_due() == 1
    assert events[1:] == [Delivered(1)]


def test_two_quick_connections_are_told_once_each(broker):
    """An answer to a connection that has ended already is void."""
    transport, events = broker.connect("hasty"), []
    transport.start(events.append)
    transport.drop("a bad link")
    transport.reconnect()
    broker.deliver_due()
    assert events == [Disconnected("a bad link"), Connected(False)]


def test_a_session_is_kept_for_who_asks_and_what_came_meanwhile_waits(broker):
    """A persistent session holds subscriptions and messages; a clean one holds nothing."""
    keeper, heard = started(broker, "keeper", clean=False)
    keeper.subscribe(["t"])
    writer, _ = started(broker, "writer")
    keeper.drop("asleep")
    for number in range(3):
        writer.publish("t", bytes([number]))
        broker.deliver_due()
    keeper.reconnect()
    broker.deliver_due()
    assert heard[-4:-3] == [Connected(True)]
    assert payloads(heard) == [bytes([number]) for number in range(3)]


def test_a_message_on_its_way_to_a_connection_that_breaks_comes_on_the_next(broker, clock):
    """And after its Connected, never before."""
    keeper, heard = started(broker, "keeper", clean=False)
    keeper.subscribe(["t"])
    writer, _ = started(broker, "writer")
    writer.publish("t", b"x")
    keeper.drop("a bad link")
    keeper.reconnect()
    broker.deliver_due()
    assert [type(event) for event in heard] == [Connected, Disconnected, Connected, Received]


def test_a_clean_session_after_a_kept_one_and_the_other_way_round_is_new(broker):
    """A takeover by a client of the other kind finds nothing, and works."""
    first, _ = started(broker, "name", clean=True)
    second, heard = started(broker, "name", clean=False)
    assert heard == [Connected(False)]
    second.subscribe(["t"])
    second.publish("t", b"x")
    broker.deliver_due()
    assert payloads(heard) == [b"x"]
    third, heard = started(broker, "name", clean=True)
    assert heard == [Connected(False)]
    third.publish("t", b"y")
    broker.deliver_due()
    assert payloads(heard) == []
    assert first.publish("t", b"") is None


def test_unacknowledged_messages_come_again_and_settled_ones_do_not(broker):
    """At least once: until the receiver says it has it."""
    keeper, heard = started(broker, "keeper", clean=False, manual_ack=True)
    keeper.subscribe(["t"])
    writer, _ = started(broker, "writer")
    for number in range(3):
        writer.publish("t", bytes([number]))
    broker.deliver_due()
    second = [event for event in heard if isinstance(event, Received)][1]
    keeper.acknowledge(second.token)
    keeper.renew()
    broker.deliver_due()
    assert payloads(heard) == [b"\0", b"\1", b"\2", b"\0", b"\2"]


def test_a_killed_broker_speaks_no_will_and_may_lose_its_memory(broker):
    """With its store, sessions and retained messages are there again; without it, nothing is."""
    watcher, heard = started(broker, "watcher", clean=False)
    watcher.subscribe(["will", "kept"])
    device, _ = started(broker, "device", will=lambda: Will("will", b"gone"))
    device.publish("kept", b"here", retain=True)
    broker.deliver_due()
    broker.restart(keep_store=True)
    watcher.reconnect()
    broker.deliver_due()
    assert heard[-1] == Connected(True)
    watcher.subscribe(["kept"])
    broker.deliver_due()
    assert heard[-1].retained
    broker.restart(keep_store=False)
    watcher.reconnect()
    broker.deliver_due()
    assert heard[-1] == Connected(False)
    watcher.subscribe(["kept"])
    broker.deliver_due()
    assert heard[-1] == Connected(False)
    assert b"gone" not in payloads(heard)


def test_a_broken_link_speaks_the_will_and_a_clean_stop_does_not(broker):
    """And stop is for good."""
    watcher, heard = started(broker, "watcher")
    watcher.subscribe(["will"])
    device, _ = started(broker, "device", will=lambda: Will("will", b"gone"))
    device.drop("a bad link")
    device.reconnect()
    broker.deliver_due()
    device.stop()
    device.reconnect()
    broker.deliver_due()
    assert payloads(heard) == [b"gone"]


def test_a_sleeping_session_is_bounded(broker):
    """What does not fit is dropped and counted, as brokers do."""
    keeper, heard = started(broker, "keeper", clean=False)
    keeper.subscribe(["t"])
    writer, _ = started(broker, "writer")
    keeper.drop("asleep")
    for _ in range(MAX_QUEUED + 10):
        assert writer.publish("t", b"x")
        broker.deliver_due()
    assert broker.lost == 10
    keeper.reconnect()
    broker.deliver_due()
    assert len(payloads(heard)) == MAX_QUEUED


def run(seed: int, faults: Faults, count: int = 300) -> tuple[list[bytes], LoopbackBroker]:
    """Send numbered messages through a faulty broker; what arrived."""
    clock = ManualClock()
    broker = LoopbackBroker(clock, seed=seed, faults=faults)
    reader, heard = started(broker, "reader")
    reader.subscribe(["t"])
    writer, told = started(broker, "writer")
    for number in range(count):
        assert writer.publish("t", number.to_bytes(2, "big"))
        broker.deliver_due()
    while (due := broker.next_due()) is not None:
        clock.advance(due - clock.monotonic())
        broker.deliver_due()
    assert sum(isinstance(event, Delivered) for event in told) == count
    return payloads(heard), broker


def test_the_same_seed_gives_the_same_deliveries():
    """A failure found by a seed can be looked at again."""
    faults = Faults(lose=0.1, repeat=0.1, reorder=0.2, delay_s=(0.1, 2.0))
    assert run(5, faults)[0] == run(5, faults)[0]
    assert run(5, faults)[0] != run(6, faults)[0]


def test_without_faults_everything_arrives_once_and_in_order():
    """Whatever the seed."""
    arrived, broker = run(1, Faults())
    assert arrived == [number.to_bytes(2, "big") for number in range(300)]
    assert broker.lost == 0


def test_lost_messages_were_acknowledged_and_are_counted():
    """Brokers lose what they have acknowledged."""
    arrived, broker = run(2, Faults(lose=0.2))
    assert 0 < broker.lost == 300 - len(arrived)


def test_repeated_and_reordered_messages_are_all_there():
    """Nothing but order and number of copies changes."""
    arrived, _ = run(3, Faults(repeat=0.3))
    assert len(arrived) > 300
    assert len(set(arrived)) == 300
    assert arrived == sorted(arrived)
    arrived, _ = run(3, Faults(reorder=0.3))
    assert len(arrived) == 300
    assert arrived != sorted(arrived)


def test_delays_are_kept():
    """Nothing comes before its time."""
    clock = ManualClock()
    broker = LoopbackBroker(clock, faults=Faults(delay_s=(5.0, 6.0)))
    peer, heard = started(broker, "peer")
    peer.subscribe(["t"])
    peer.publish("t", b"x")
    clock.advance(4.9)
    broker.deliver_due()
    assert payloads(heard) == []
    assert 5.0 <= broker.next_due() <= 6.0
    clock.advance(1.1)
    broker.deliver_due()
    assert payloads(heard) == [b"x"]


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("#", "a/b", True),
        ("+/b", "a/b", True),
        ("a/+/c", "a//c", True),
        ("a", "a/b", False),
    ],
)
def test_filters_match_as_the_standard_says(pattern, topic, expected):
    """MQTT 3.1.1, section 4.7."""
    assert matches(pattern, topic) is expected


@given(st.lists(st.text(alphabet="ab", max_size=2), min_size=1, max_size=4))
def test_every_topic_matches_itself_and_the_wildcard(levels):
    """Empty levels included."""
    topic = "/".join(levels)
    assert matches(topic, topic)
    assert matches("#", topic)
    assert matches("/".join("+" for _ in levels), topic)


def test_who_acknowledges_by_hand_is_sent_a_window_at_a_time(broker):
    """A burst waits at the broker, in order, and nothing of it is lost to a connection that ends."""
    keeper, heard = started(broker, "keeper", clean=False, manual_ack=True, inflight=2)
    keeper.subscribe(["t"])
    talker, _ = started(broker, "talker")
    for number in range(5):
        talker.publish("t", b"%d" % number)
    broker.deliver_due()
    assert payloads(heard) == [b"0", b"1"]
    keeper.acknowledge(next(event.token for event in heard if isinstance(event, Received)))
    talker.publish("t", b"5")
    broker.deliver_due()
    assert payloads(heard) == [b"0", b"1", b"2"]
    keeper.drop("a bad link")
    keeper.inflight = 10
    heard.clear()
    keeper.reconnect()
    broker.deliver_due()
    assert payloads(heard) == [b"1", b"2", b"3", b"4", b"5"]
