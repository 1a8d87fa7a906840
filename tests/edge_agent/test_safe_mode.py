"""Safe mode: who keeps dying does not train for a while, and can be reached."""

import pytest

from edge_agent.outbox import Outbox
from edge_agent.safe_mode import GOOD_S, SafeMode
from edge_agent.wear import Wear
from fl_protocol.clock import ManualClock
from fl_protocol.errors import StorageError


@pytest.fixture
def clock():
    """Time as the test says."""
    return ManualClock(1000.0)


@pytest.fixture
def outbox(tmp_path, clock):
    """The file that remembers starts."""
    box = Outbox(tmp_path / "agent.db", max_bytes=1 << 20, max_age_s=1e6, clock=clock)
    yield box
    box.close()


def starts(outbox, clock, count, *, after=5):
    """So many starts, each of which dies."""
    modes = [SafeMode(outbox, clock, after=after) for _ in range(count)]
    return [mode.active for mode in modes]


def test_the_sixth_start_after_five_that_died_is_safe(outbox, clock):
    """And the next one too: it did not last either."""
    assert starts(outbox, clock, 7) == [False] * 5 + [True] * 2


def test_a_good_minute_ends_it_for_good(outbox, clock):
    """Starts are counted anew from there."""
    starts(outbox, clock, 5)
    mode = SafeMode(outbox, clock, after=5)
    assert mode.active
    assert "safe_mode" in mode.reason
    assert mode.work() == pytest.approx(GOOD_S)
    clock.advance(GOOD_S)
    mode.work()
    assert (mode.active, mode.reason) == (False, "")
    assert starts(outbox, clock, 5) == [False] * 5


@pytest.mark.parametrize("good", [SafeMode.prove, SafeMode.end])
def test_a_start_that_achieved_something_or_ended_in_order_is_no_failure(outbox, clock, good):
    """Power for half a minute at a time makes no broken device, nor does an operator who restarts it."""
    for _ in range(10):
        mode = SafeMode(outbox, clock, after=5)
        assert not mode.active
        good(mode)


def test_an_order_to_resume_ends_it(outbox, clock):
    """Somebody has reached it."""
    starts(outbox, clock, 5)
    mode = SafeMode(outbox, clock, after=5)
    mode.leave()
    assert not mode.active
    assert not SafeMode(outbox, clock, after=5).active


def test_it_can_be_switched_off(outbox, clock):
    """Then no start is written down at all."""
    commits = outbox.commits
    assert starts(outbox, clock, 20, after=0) == [False] * 20
    assert outbox.commits == commits


def test_a_disk_that_refuses_keeps_no_agent_from_its_work(outbox, clock, monkeypatch):
    """What cannot be counted is not counted."""

    def refuse(*_):
        raise StorageError("no space left on device")

    monkeypatch.setattr(type(outbox), "remember", refuse)
    mode = SafeMode(outbox, clock, after=5)
    mode.prove()
    mode.end()
    assert not mode.active


def test_bytes_are_read_only_where_something_was_synced(tmp_path):
    """Else each look at them would be news, and write the status again."""
    io = tmp_path / "io"
    wear = Wear(io)
    assert wear.body(0) == {"syncs": 0, "bytes_written": None}
    io.write_text("rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 0\n")
    assert wear.body(0)["bytes_written"] is None
    assert wear.body(1) == {"syncs": 1, "bytes_written": 4096}
