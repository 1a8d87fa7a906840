"""The trial of a broker: a verdict only where there is ground for one."""

import pytest

from broker_coordinator.configuration import PublishTable
from broker_coordinator.publication.retain_trial import PATIENCE_S, RetainTrial
from fl_protocol.presence import GetRequest


def test_a_message_that_comes_back_is_kept():
    """At once, without waiting; and no later silence takes it back."""
    trial = RetainTrial("auto")
    trial.begin(1, 0.0)
    assert not trial.delivered(7)
    assert trial.delivered(1)
    assert 0 < trial.left(1.0) < PATIENCE_S
    trial.came_back()
    assert (trial.verdict, trial.left(1.0)) == (True, 0.0)
    trial.broken_off()
    assert trial.verdict is True


def test_a_broker_that_hangs_up_twice_does_not_want_it():
    """Once may be the link; twice in a row, with the message under way, is the broker. It stays so."""
    trial = RetainTrial("auto")
    for verdict in (None, False):
        trial.begin(1, 0.0)
        trial.broken_off()
        assert trial.verdict is verdict
    trial.broken_off()
    assert trial.verdict is False


def test_a_link_that_breaks_now_and_then_proves_nothing():
    """Breaks with nothing under way, or with a delivery between them, do not add up."""
    trial = RetainTrial("auto")
    for _ in range(5):
        trial.broken_off()
        trial.begin(1, 0.0)
        trial.delivered(1)
        trial.broken_off()
        trial.begin(2, 0.0)
        trial.broken_off()
        assert trial.verdict is None
        trial.begin(3, 0.0)
        trial.delivered(3)


def test_silence_is_a_verdict_for_one_connection():
    """A broker that took it and kept nothing; the next connection may lead to another one."""
    trial = RetainTrial("auto")
    trial.begin(1, 0.0)
    trial.delivered(1)
    assert trial.left(PATIENCE_S) == 0.0
    assert trial.verdict is False
    trial.broken_off()
    assert trial.verdict is None


def test_never_is_no_question():
    """An operator who says so is believed, for good."""
    trial = RetainTrial("never")
    trial.broken_off()
    assert trial.verdict is False


class Forgetful(dict):
    """Retained messages of a broker that keeps none."""

    def __setitem__(self, topic, payload):
        pass


@pytest.mark.parametrize("retain", ["auto", "never"])
def test_a_broker_that_keeps_nothing_is_found_out(fleet_of, retain):
    """Nobody has told us: manifest and chunks come in answer to ``get`` all the same."""
    fleet = fleet_of(publish=PublishTable(retain=retain))
    fleet.broker._retained = Forgetful()
    fleet.start()
    fleet.settle(PATIENCE_S + 1.0)
    device = fleet.device("d1")
    assert fleet.store.inventory() == []
    device.say(device.topics.get("d1"), GetRequest().pack())
    fleet.settle()
    assert device.manifest.version.number == 0
