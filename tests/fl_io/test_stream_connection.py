"""Our own connection against brokers that misbehave."""

import contextlib
import queue
import socket
import threading

import pytest

from fl_io import stream_connection
from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_protocol.transport import Connected, Delivered, Disconnected

PATIENCE_S = 20.0
CONNACK = bytes([0x20, 2, 0, 0])


@contextlib.contextmanager
def broker_that_says(*words: bytes):
    """A server that answers the first packet of each connection with these bytes, and nothing more."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    peer, _ = server.accept()
                    peer.settimeout(PATIENCE_S)
                    with peer:
                        peer.recv(4096)
                        for word in words:
                            peer.sendall(word)
                        while peer.recv(1 << 16):
                            pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def transport_to(url, **options):
    """A transport that is started, and its events."""
    events: queue.SimpleQueue = queue.SimpleQueue()
    transport = MqttTransport(BrokerAddress.parse(url), "one", **options)
    transport.start(events.put)
    try:
        yield transport, lambda: events.get(timeout=PATIENCE_S)
    finally:
        transport.stop()


def test_a_broker_that_does_not_answer_any_more_is_left():
    """The link is dead and says nothing: the ping finds out, and the next connection is made."""
    with broker_that_says(CONNACK) as url, transport_to(url, keepalive_s=1) as (_, event):
        assert event() == Connected(False)
        ended = event()
        assert isinstance(ended, Disconnected)
        assert "does not answer" in ended.reason
        assert isinstance(event(), Connected)


@pytest.mark.parametrize("noise", [b"\x34\x05\x00\x01t\x00\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9])
def test_noise_ends_the_connection_with_a_reason(noise):
    """What comes cannot be trusted from there on; the process goes on, and tries again."""
    with broker_that_says(CONNACK, noise) as url, transport_to(url) as (_, event):
        assert isinstance(event(), Connected)
        assert "the broker" in event().reason
        assert isinstance(event(), Connected)


def test_acknowledgements_nobody_waits_for_change_nothing():
    """A broker acknowledges a packet that was never sent, and then ours, twice."""
    strange = bytes([0x40, 2, 0, 99])
    ours = bytes([0x40, 2, 0, 1])
    with broker_that_says(CONNACK, strange) as url, transport_to(url, window=1) as (transport, event):
        assert isinstance(event(), Connected)
        assert transport.publish("t", b"") is not None
        assert transport.publish("t", b"") is None
    with broker_that_says(CONNACK + ours + ours) as url, transport_to(url) as (transport, event):
        assert isinstance(event(), Connected)
        assert transport.publish("t", b"") is not None
        transport.renew()
        assert not isinstance(event(), Delivered)


def test_the_window_counts_bytes_too(monkeypatch):
    """Hundreds of receipts fit into it; as many chunks of a blob would be a memory of their own."""
    monkeypatch.setattr(stream_connection, "WINDOW_BYTES", 1000)
    with broker_that_says(CONNACK) as url, transport_to(url, window=500) as (transport, event):
        assert isinstance(event(), Connected)
        assert transport.publish("t", bytes(2000)) is not None, "the first goes out, whatever its size"
        assert transport.publish("t", bytes(1)) is None
        transport.renew()
        assert isinstance(event(), Disconnected)
        assert isinstance(event(), Connected)
        assert [transport.publish("t", bytes(300)) is not None for _ in range(4)] == [True, True, True, False]
