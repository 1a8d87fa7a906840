"""The watchdog: systemd hears that all is well only while all is well."""

import os
import socket

import pytest

from fl_io.watchdog import Notifier, Watchdog
from fl_protocol.clock import ManualClock


@pytest.fixture
def clock():
    """Time as the test says."""
    return ManualClock(1000.0)


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """systemd's end of the socket, and its name for the environment."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@lichen-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(name.replace("@", "\0", 1))
        channel.setblocking(False)
        yield channel, name


def heard(channel):
    """What was said since the last time, line by line."""
    lines = []
    while True:
        try:
            lines += channel.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines


def watchdog(name, clock, *checks, seconds=10):
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": str(seconds * 1_000_000)}
    return Watchdog(Notifier(environment), clock, checks)


def test_it_is_fed_twice_in_its_time_and_no_more(systemd, clock):
    """However often the loop turns."""
    channel, name = systemd
    dog = watchdog(name, clock)
    dog.ready()
    for _ in range(100):
        assert 0 < dog.turn() <= 5.0
        clock.advance(0.25)
    lines = heard(channel)
    assert lines[0] == "READY=1"
    assert lines.count("WATCHDOG=1") == 5


def test_a_part_that_is_late_starves_it_and_its_fault_is_said(systemd, clock):
    """One sick part is enough; when it is well again, the food comes again."""
    channel, name = systemd
    faults = ["", ""]
    dog = watchdog(name, clock, lambda: faults[0], lambda: faults[1])
    dog.turn()
    assert "WATCHDOG=1" in heard(channel)
    faults[1] = "the network thread has ended"
    clock.advance(5.0)
    dog.turn()
    assert heard(channel) == ["STATUS=the network thread has ended"]
    faults[1] = ""
    clock.advance(5.0)
    dog.turn()
    assert "WATCHDOG=1" in heard(channel)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "0"},
    ],
)
def test_who_is_not_watched_says_nothing(environment, clock):
    """No socket, another process's watchdog, nonsense: the loop is not woken for it."""
    dog = Watchdog(Notifier(environment), clock)
    dog.ready()
    assert dog.turn() is None


def test_nobody_who_listens_is_no_reason_to_fail(tmp_path, clock):
    """systemd may have gone."""
    dog = watchdog(str(tmp_path / "nobody"), clock)
    dog.ready()
    dog.turn()
    dog.stopping()
