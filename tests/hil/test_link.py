"""The link emulator against a real socket at each end."""

import contextlib
import hashlib
import random
import socket
import threading

import pytest

from fl_protocol.errors import ConfigError, LichenError
from hil.link import LinkEmulator
from hil.link_profile import PROFILES, LinkDirection, LinkProfile, Outage, load_profile

TIMEOUT_S = 20.0


@pytest.fixture
def upstream():
    """Give the address of a server that answers each connection's bytes with their sha256 at its end."""
    server = socket.create_server(("127.0.0.1", 0))
    served: list[threading.Thread] = []

    def answer(end: socket.socket) -> None:
        digest = hashlib.sha256()
        with end, contextlib.suppress(OSError):
            end.settimeout(TIMEOUT_S)
            while content := end.recv(65536):
                digest.update(content)
            end.sendall(digest.digest())

    def serve() -> None:
        while True:
            try:
                end, _ = server.accept()
            except OSError:
                return
            served.append(threading.Thread(target=answer, args=(end,)))
            served[-1].start()

    accepting = threading.Thread(target=serve)
    accepting.start()
    yield server.getsockname()
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for thread in [accepting, *served]:
        thread.join(TIMEOUT_S)


def digest_through(port: int, content: bytes) -> bytes:
    """Send everything, close the sending half, and read what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as end:
        end.sendall(content)
        end.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := end.recv(64):
            answer += piece
        return answer


def test_every_byte_arrives_in_order_however_bad_the_line(upstream):
    """Jitter and loss delay packets; TCP never shows them in another order."""
    line = LinkDirection(delay_ms=1, jitter_ms=5, rate_kbps=80_000, loss=0.01)
    content = random.Random(1).randbytes(300_000)
    with LinkEmulator(LinkProfile(up=line, down=line), upstream=upstream, seed=3) as link:
        assert digest_through(link.port, content) == hashlib.sha256(content).digest()
        assert link.counts.bytes_up == len(content)
        assert link.counts.bytes_down == 32


def test_what_is_lost_on_the_line_was_sent(upstream):
    """A ratio of bytes sent to bytes needed must not leave out what a loss costs."""
    line = LinkDirection(loss=0.999)
    with LinkEmulator(LinkProfile(up=line), upstream=upstream, seed=1) as link:
        assert digest_through(link.port, bytes(100)) == hashlib.sha256(bytes(100)).digest()
        assert (link.counts.bytes_up, link.counts.sent_up) == (100, 200)
        assert (link.counts.bytes_down, link.counts.sent_down) == (32, 32)


def test_a_blackout_holds_everything_and_loses_nothing(upstream):
    """A device in a tunnel sees neither bytes nor an error, and goes on after it."""
    with LinkEmulator(LinkProfile(), upstream=upstream) as link:
        link.pause()
        with socket.create_connection(("127.0.0.1", link.port), timeout=TIMEOUT_S) as end:
            end.sendall(b"hello")
            end.shutdown(socket.SHUT_WR)
            end.settimeout(0.2)
            with pytest.raises(TimeoutError):
                end.recv(1)
            assert link.counts.bytes_up == 0
            link.resume()
            end.settimeout(TIMEOUT_S)
            assert end.recv(32) == hashlib.sha256(b"hello").digest()


def test_a_reset_is_one(upstream):
    """The device gets a connection reset, not a polite end."""
    with (
        LinkEmulator(LinkProfile(), upstream=upstream) as link,
        socket.create_connection(("127.0.0.1", link.port), timeout=TIMEOUT_S) as end,
    ):
        end.sendall(b"hello")
        while not link.counts.bytes_up:
            pass
        link.reset()
        with pytest.raises(ConnectionResetError):
            end.recv(1)
        assert link.counts.resets == 1


def test_resets_come_by_themselves_where_the_profile_says_so(upstream):
    """The basement's router drops every connection again and again."""
    with LinkEmulator(LinkProfile(reset_every_s=0.1), upstream=upstream) as link:
        for _ in range(3):
            with (
                socket.create_connection(("127.0.0.1", link.port), timeout=TIMEOUT_S) as end,
                contextlib.suppress(ConnectionResetError),
            ):
                end.recv(1)
        assert link.counts.connections == 3
        assert link.counts.resets >= 3


def test_a_forgotten_connection_is_half_open_and_a_new_one_works(upstream):
    """What a router that lost its tables does: the old connection never answers again."""
    with (
        LinkEmulator(LinkProfile(), upstream=upstream) as link,
        socket.create_connection(("127.0.0.1", link.port), timeout=TIMEOUT_S) as old,
    ):
        old.sendall(b"a")
        while not link.counts.bytes_up:
            pass
        link.forget()
        old.sendall(b"b")
        old.settimeout(0.2)
        with pytest.raises(TimeoutError):
            old.recv(1)
        assert digest_through(link.port, b"new") == hashlib.sha256(b"new").digest()


def test_a_link_that_refuses_resets_and_later_serves(upstream):
    """Refused connections end at once; nothing is kept of them."""
    with LinkEmulator(LinkProfile(), upstream=upstream) as link:
        link.refuse()
        with pytest.raises(ConnectionResetError):
            digest_through(link.port, b"x" * 100_000)
        link.refuse(False)
        assert digest_through(link.port, b"x") == hashlib.sha256(b"x").digest()


def test_the_same_seed_draws_the_same_link():
    """A run that failed can be repeated with its link."""
    one, two = (LinkEmulator(LinkProfile(), upstream=("127.0.0.1", 1), seed=5) for _ in range(2))
    assert [one.draw() for _ in range(5)] == [two.draw() for _ in range(5)]
    for link in (one, two):
        with pytest.raises(LichenError, match="does not run"):
            link.reset()


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_profiles_that_come_along_read(path):
    """Each is a link with a rate in both directions."""
    profile = load_profile(path.stem)
    assert profile.up.rate_kbps > 0
    assert profile.down.rate_kbps > 0
    assert profile.faster(2).up.rate_kbps == 2 * profile.up.rate_kbps


def test_a_profile_with_faults_names_all_of_them(tmp_path):
    """The faults of a person's own profile come at once, each with its line."""
    file = tmp_path / "mine.toml"
    file.write_text("[up]\nloss = 1.5\n\n[outage]\nevery_s = 1\nlasting_s = 2\n")
    with pytest.raises(ConfigError) as caught:
        load_profile(file)
    assert "share" in str(caught.value)
    assert "outage" in str(caught.value)
    with pytest.raises(ConfigError, match="no link profile is called 'moon'"):
        load_profile("moon")


def test_an_outage_says_when_it_cannot_be():
    """An outage longer than its period would never end."""
    with pytest.raises(ValueError, match="outage lasts"):
        Outage(every_s=1, lasting_s=1)
