"""The lookout: what the gates say, half a minute at most out of date."""

import pytest

from edge_agent.configuration import GateSettings
from edge_agent.lookout import LOOK_EVERY_S, Lookout
from edge_agent.samples import SampleStore
from fl_protocol.clock import ManualClock


class Machine:
    """A machine whose mains supply a test switches; counts how often it was asked."""

    def __init__(self) -> None:
        self.mains = True
        self.asked = 0

    def on_mains(self) -> bool:
        self.asked += 1
        return self.mains

    def temperature_c(self) -> None:
        return None

    def load(self) -> None:
        return None

    def free_memory_mb(self) -> None:
        return None

    def battery(self) -> None:
        return None


@pytest.fixture
def lookout(tmp_path):
    """A device with ten samples that trains on mains only."""
    path = tmp_path / "samples.db"
    with SampleStore(path) as store:
        store.extend([[0.0]] * 10)
    machine, clock = Machine(), ManualClock(7.0)
    settings = GateSettings(mains_only=True)
    return Lookout(settings, path, machine=machine, clock=clock), machine, clock, path


def test_the_machine_is_asked_every_half_minute(lookout):
    """However often the supervisor asks; and at once where it has reason to."""
    look, machine, clock, _ = lookout
    assert look.samples + look.held_out == 10
    for _ in range(5):
        assert look.shut() is None
    assert machine.asked == 1
    machine.mains = False
    look.look_again()
    assert look.shut() == "on battery"
    clock.advance(LOOK_EVERY_S)
    machine.mains = True
    assert look.shut() is None
    assert machine.asked == 3


def test_gates_shut_for_long_make_it_leave_and_come_back_for_the_newest(lookout):
    """Five minutes; then, when they open, a moment for the newest manifest to arrive."""
    look, machine, clock, _ = lookout
    machine.mains = False
    look.shut()
    clock.advance(299)
    assert not look.left
    clock.advance(1)
    assert look.left
    machine.mains = True
    assert "newest" in (look.shut() or "")
    assert not look.left
    clock.advance(look.next_at - clock.monotonic())
    assert look.shut() is None


def test_a_task_that_asks_nothing_is_not_left(lookout):
    """The version was trained on: the next one is waited for, on battery too."""
    look, machine, clock, _ = lookout
    machine.mains = False
    look.shut()
    look.unasked()
    clock.advance(1000)
    assert not look.left


def test_samples_that_cannot_be_read_shut_the_gates_but_end_no_training(lookout):
    """A store that is locked for a moment must not cost the training under way."""
    look, _, clock, path = lookout
    path.write_bytes(b"no database " * 1000)
    clock.advance(LOOK_EVERY_S)
    assert look.shut(in_training=True) is None
    look.look_again()
    assert str(path) in (look.shut() or "")
    assert look.samples == 0
