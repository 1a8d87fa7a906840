"""Runs that come to nothing end, and say why."""

from collections import Counter

import numpy as np
import pytest

import lichen
from fl_protocol.errors import AggregatorError, ConfigError
from hil.simulate.refusals import Refusals
from models.zoo.mlp import digits_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A small MLP on the digits."""
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits", hidden=8)


def run(artifact, pixel, **options):
    """Ten devices whose samples are all alike."""
    rows = np.full((14, 64), pixel, np.float32), np.zeros(14, np.int32)
    settings = {"count": 10, "versions": 3, "runtimes": ("numpy",), "fleet": {"buffer": {"size": 5}}}
    return lichen.simulate(artifact, [rows] * 10, **{**settings, **options})


def test_updates_that_are_all_refused_end_a_run(artifact, tmp_path, monkeypatch):
    """A rule that gives weights beyond all numbers: each device is refused once, then all is silent."""
    (tmp_path / "weighs_much.py").write_text(
        "from broker_coordinator.aggregation.aggregator import Mean\n"
        "class Heavy(Mean):\n"
        "    def weigh(self, update, context):\n"
        "        return 3e38\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"\d\d updates refused, not_finite: .* lr"):
        run(artifact, 0.5, fleet={"buffer": {"size": 5}, "aggregator": {"kind": "weighs_much:Heavy"}})


def test_a_rule_that_fails_ends_a_run_with_its_name(artifact, tmp_path, monkeypatch):
    """Nobody mends it while the run goes on."""
    (tmp_path / "reads_losses.py").write_text(
        "from broker_coordinator.aggregation.aggregator import Mean\n"
        "class LossWeighted(Mean):\n"
        "    def weigh(self, update, context):\n"
        "        return update.metrics['before.loss']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"buffer": {"size": 5}, "aggregator": {"kind": "reads_losses:LossWeighted"}}
    with pytest.raises(AggregatorError, match=r"reads_losses:LossWeighted.*before\.loss"):
        run(artifact, 0.5, fleet=settings, held_out=0.0)
    assert run(artifact, 0.5, fleet=settings).versions == 3


def test_trainings_that_all_fail_end_a_run(artifact):
    """Samples that no number format holds: every device says so, and trains on that version no more."""
    with pytest.raises(ConfigError, match=r"no update was accepted\n  10 trainings failed on their devices"):
        run(artifact, 1e38)


def test_refusals_count_since_the_last_acceptance():
    """By reason, most frequent first, each with what to do; an acceptance begins the count anew."""
    refusals = Refusals(10)
    refused = Counter(stale=119)
    refusals.look(1.0, 0, refused, 0)
    refused["stale"] += 1
    refusals.look(2.0, 1, refused, 0)
    refused.update(stale=100, codec=19)
    refusals.look(3.0, 1, refused, 0)
    refused["codec"] += 1
    with pytest.raises(ConfigError) as caught:
        refusals.look(4.0, 1, refused, 0)
    assert refusals.bound == 120
    assert caught.value.args[0].startswith("the run comes to nothing: since 2 s of virtual time")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "100 updates refused, stale",
        "20 updates refused, codec",
    ]
    assert "horizon" in caught.value.faults[0]


def test_a_slow_fleet_is_not_taken_for_one_that_fails():
    """Hours without an acceptance are no fault; nor are a few refusals in them."""
    refusals = Refusals(10)
    refusals.look(1e6, 0, Counter(stale=5), 4)
    with pytest.raises(ConfigError):
        refusals.look(1e6, 0, Counter(stale=5), 5)
