"""What goes through TLS comes out as it was, over paho's connection and over the one for many messages."""

import contextlib
import hashlib
import queue
import time

import pytest
from certificates import Authority, tls_mosquitto

from fl_io import stream_connection
from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_io.tls import TlsFiles
from fl_protocol.transport import Connected, Delivered, Disconnected, Received
from hil.link import LinkEmulator
from hil.link_profile import LinkDirection, LinkProfile

pytestmark = pytest.mark.mosquitto

PATIENCE_S = 60.0
SMALL, LARGE = 3000, 60
LARGE_BYTES = 200_000
SLOW = LinkProfile(up=LinkDirection(rate_kbps=40_000), down=LinkDirection(rate_kbps=40_000))


@pytest.fixture
def served(tmp_path, broker_of):
    """An authority, and the port of a mosquitto with a certificate of its."""
    authority = Authority(tmp_path)
    program = broker_of("mosquitto")._program
    with tls_mosquitto(program, tmp_path, authority.broker(), authority.ca) as port:
        yield authority, port


@pytest.fixture
def connect(served, monkeypatch):
    """Connected transports and their events, behind a slow link; they are stopped at the end."""
    authority, port = served
    made = []
    # As much as the window takes does not fit into the sockets' room: writes are put off, and tried again.
    monkeypatch.setattr(stream_connection, "WINDOW_BYTES", SMALL * LARGE_BYTES)

    def start(name, **options):
        events: queue.SimpleQueue = queue.SimpleQueue()
        address = BrokerAddress.parse(f"mqtts://127.0.0.1:{link.port}")
        transport = MqttTransport(address, name, tls=TlsFiles(ca=authority.ca), **options)
        made.append(transport)
        transport.start(events.put)
        assert events.get(timeout=PATIENCE_S) == Connected(False, "")
        return transport, events

    with LinkEmulator(SLOW, upstream=("127.0.0.1", port)) as link:
        yield start
        for transport in made:
            transport.stop()


def content(number, size):
    """Bytes that are no other message's."""
    return hashlib.shake_128(str(number).encode()).digest(size)


def is_open(transport, events):
    """Subscribed: its own message has come back."""
    transport.subscribe(["to/#"])
    transport.publish("to/begin", b"")
    while not isinstance(events.get(timeout=PATIENCE_S), Received):
        pass


def exchange(sender, sent_events, reader, read_events, sizes):
    """Publish messages of these sizes as the window allows; what the reader received, in order. One transport
    may be both."""
    left, wanted, received = list(range(len(sizes))), set(), []
    deadline = time.monotonic() + PATIENCE_S
    while left or wanted or len(received) < len(sizes):
        assert time.monotonic() < deadline, (len(left), len(wanted), len(received))
        while (
            left and (token := sender.publish(f"to/{left[0]}", content(left[0], sizes[left[0]]))) is not None
        ):
            wanted.add(token)
            left.pop(0)
        for events in {id(sent_events): sent_events, id(read_events): read_events}.values():
            for event in arrived(events):
                assert not isinstance(event, Disconnected), event
                if isinstance(event, Delivered):
                    wanted.discard(event.token)
                elif isinstance(event, Received):
                    received.append((event.topic, event.payload))
                    reader.acknowledge(event.token)
    return received


def arrived(events):
    """What has come, and what comes within a moment."""
    with contextlib.suppress(queue.Empty):
        yield events.get(timeout=0.01)
        while True:
            yield events.get_nowait()


@pytest.mark.parametrize("many", [(True, True), (True, False), (False, True)], ids=["both", "sends", "reads"])
@pytest.mark.parametrize("sizes", [[20] * SMALL, [LARGE_BYTES] * LARGE], ids=["small", "large"])
def test_all_that_is_sent_comes_in_order_and_whole(connect, many, sizes):
    """Thousands of receipts in one write, and chunks far beyond a TLS record and the socket's room."""
    sender, sent_events = connect("sender", paho=not many[0], window=500)
    reader, read_events = connect("reader", paho=not many[1], window=500, manual_ack=True)
    is_open(reader, read_events)
    received = exchange(sender, sent_events, reader, read_events, sizes)
    assert [topic for topic, _ in received] == [f"to/{number}" for number in range(len(sizes))]
    assert all(payload == content(number, sizes[number]) for number, (_, payload) in enumerate(received))


def test_both_directions_at_once_do_not_stand_in_each_others_way(connect):
    """A writer whose socket is full must go on reading, or broker and client wait for each other for ever."""
    transport, events = connect("alone", window=500)
    is_open(transport, events)
    received = exchange(transport, events, transport, events, [LARGE_BYTES] * LARGE)
    assert received == [(f"to/{number}", content(number, LARGE_BYTES)) for number in range(LARGE)]


@pytest.mark.parametrize("many", [False, True], ids=["device", "coordinator"])
def test_a_connection_that_is_renewed_in_the_middle_of_a_message_starts_clean(connect, many):
    """Half a record is left on the old one; nothing of it gets into the new one."""
    transport, events = connect("renewed", paho=not many, window=500)
    for number in range(8):
        transport.publish(f"to/{number}", content(number, LARGE_BYTES))
    transport.renew()
    while not isinstance(events.get(timeout=PATIENCE_S), Connected):
        pass
    is_open(transport, events)
    assert transport.publish("to/last", b"last") is not None
    while not isinstance(event := events.get(timeout=PATIENCE_S), Received):
        assert not isinstance(event, Disconnected)
    assert (event.topic, event.payload) == ("to/last", b"last")
