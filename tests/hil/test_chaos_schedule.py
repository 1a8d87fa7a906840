"""The breaker's schedule: pure, so that a seed that found something finds it again."""

import pytest

from fl_protocol.errors import ConfigError
from hil.chaos.faults import FAULTS
from hil.chaos.schedule import BROKER, COORDINATOR, KINDS, device_name, draw_schedule


def test_a_seed_repeats_its_schedule_and_no_other_does():
    """Whatever it is drawn from is in its arguments."""
    first = draw_schedule(seed=7, minutes=5, devices=12)
    assert first == draw_schedule(seed=7, minutes=5, devices=12)
    assert first != draw_schedule(seed=8, minutes=5, devices=12)


@pytest.mark.parametrize("seed", range(5))
def test_five_minutes_meet_every_kind_of_fault(seed):
    """Kinds are dealt like cards: none waits for luck."""
    schedule = draw_schedule(seed=seed, minutes=5, devices=12)
    assert {fault.kind for fault in schedule} == KINDS.keys()


def test_a_schedule_keeps_to_its_time_and_to_who_is_there():
    """In order, within the minutes, and each fault with a target and a setting that its kind knows."""
    schedule = draw_schedule(seed=1, minutes=4, devices=3)
    seconds = [fault.second for fault in schedule]
    assert seconds == sorted(seconds)
    assert seconds[-1] < 240
    known = {device_name(number) for number in range(3)} | {BROKER, COORDINATOR}
    for fault in schedule:
        kind = KINDS[fault.kind]
        assert fault.target in known
        assert fault.setting in kind.settings
        assert kind.lasting_s[0] <= fault.lasting_s <= kind.lasting_s[1]


def test_only_the_kinds_that_are_asked_for_are_drawn():
    """One kind by itself finds a cause; a kind that nobody knows is an error."""
    assert {fault.kind for fault in draw_schedule(seed=1, minutes=1, devices=2, kinds=["kill_agent"])} == {
        "kill_agent"
    }
    with pytest.raises(ConfigError, match="flood"):
        draw_schedule(seed=1, minutes=1, devices=2, kinds=["flood"])


def test_each_kind_has_its_function():
    """What can be drawn can be done."""
    assert FAULTS.keys() == KINDS.keys()
