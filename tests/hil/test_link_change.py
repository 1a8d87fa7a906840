"""A link that changes while connections stand."""

import socket
import threading

import pytest

from hil.link import LinkEmulator
from hil.link_profile import LinkDirection, LinkProfile


@pytest.fixture
def sink():
    """A listener that counts to so many bytes; its port, and an event that is set then."""
    server = socket.create_server(("127.0.0.1", 0))
    complete = threading.Event()

    def take() -> None:
        peer, _ = server.accept()
        left = 20_000
        while left > 0 and (content := peer.recv(4096)):
            left -= len(content)
        complete.set()
        peer.close()

    thread = threading.Thread(target=take)
    thread.start()
    yield server.getsockname()[1], complete
    server.close()
    thread.join(10)


def test_what_waits_on_a_slow_line_arrives_when_the_line_is_fast(sink):
    """20 KB at one kbit/s take minutes; after the change they are there at once, on the same connection."""
    port, complete = sink
    slow = LinkProfile(up=LinkDirection(rate_kbps=1.0))
    with LinkEmulator(slow, upstream=("127.0.0.1", port)) as link:
        with socket.create_connection(("127.0.0.1", link.port)) as device:
            device.sendall(bytes(20_000))
            assert not complete.wait(0.5)
            link.change(LinkProfile())
            # The first packet was asleep already: it wakes by its old time, 11 s.
            assert complete.wait(30)
        assert link.counts.resets == 0


def test_a_change_ends_a_blackout(sink):
    """What was sent into it arrives."""
    port, complete = sink
    with LinkEmulator(LinkProfile(), upstream=("127.0.0.1", port)) as link:
        link.pause()
        with socket.create_connection(("127.0.0.1", link.port)) as device:
            device.sendall(bytes(20_000))
            assert not complete.wait(0.2)
            link.change(LinkProfile())
            assert complete.wait(30)
