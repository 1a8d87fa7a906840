"""The watchdog: systemd hears that all is well only while all is well."""

import os
import socket
from itertools import pairwise

import pytest

from fl_io.watchdog import ASK_EVERY_S, LONGEST_PIECE_S, Notifier, Watchdog
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


def test_it_is_fed_ten_times_in_its_time_and_no_more(systemd, clock):
    """However often the loop turns; it asks to be woken for half of the time, and no sooner."""
    channel, name = systemd
    dog = watchdog(name, clock)
    dog.ready()
    lines = heard(channel)
    assert lines == ["READY=1"]
    for _ in range(100):
        assert 4.0 < dog.turn() <= 5.0
        lines += heard(channel)
        clock.advance(0.25)
    assert lines.count("WATCHDOG=1") == 25


def test_a_turn_that_is_long_may_take_nearly_all_of_the_time(systemd, clock):
    """What a loop that turned all the while had left before it blocked: nine tenths."""
    channel, name = systemd
    dog = watchdog(name, clock)
    dog.ready()
    fed = []
    for _ in range(100):
        clock.advance(0.25)
        dog.turn()
        if "WATCHDOG=1" in heard(channel):
            fed.append(clock.monotonic())
    assert all(later - earlier <= 1.0 for earlier, later in pairwise([*fed, clock.monotonic()]))


def test_work_that_gets_on_is_alive_and_work_that_hangs_is_not(systemd, clock):
    """A turn of a hundred times systemd's patience, which says so between its pieces; then nothing."""
    channel, name = systemd
    dog = watchdog(name, clock)
    dog.ready()
    heard(channel)
    for _ in range(1000):
        clock.advance(1.0)
        dog.progress()
        assert heard(channel) == ["WATCHDOG=1", "STATUS="]
    clock.advance(10.0)
    assert heard(channel) == []
    assert dog.silent_s == 10.0


def test_progress_of_the_loop_hides_no_part_that_is_late(systemd, clock):
    """A network thread that has ended is a fault in the middle of long work too."""
    channel, name = systemd
    dog = watchdog(name, clock, lambda: "the network thread has ended")
    dog.ready()
    dog.progress()
    assert "WATCHDOG=1" not in heard(channel)


def test_a_long_start_asks_for_more_time_a_piece_at_a_time(systemd, clock):
    """As long as it gets on, at most every ten seconds; a piece that says how long it takes, at once."""
    channel, name = systemd
    dog = watchdog(name, clock)
    lines = []
    for _ in range(100):
        dog.progress()
        lines += heard(channel)
        clock.advance(1.0)
    assert lines == [f"EXTEND_TIMEOUT_USEC={round((LONGEST_PIECE_S + ASK_EVERY_S) * 1e6)}"] * 10
    dog.progress(3600.0)
    assert heard(channel) == ["EXTEND_TIMEOUT_USEC=3610000000"]
    dog.ready()
    dog.progress()
    assert not any(line.startswith("EXTEND") for line in heard(channel))


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
