"""Trainers that find their data by themselves: no store is needed, and what they count is what counts."""

import sys
from pathlib import Path

import pytest

from edge_agent.configuration import AgentConfiguration, GateSettings
from edge_agent.gates import Surroundings, shut_gate
from edge_agent.job_runner import JobRunner
from edge_agent.jobs import JobFailed, Trained
from fl_io.clock import SystemClock

_APP = """
import lichen

class Own:
    brings_samples = True
    counted = 30
    def train(self, weights, samples, plan, should_stop):
        assert len(samples) == 0, "the store is empty"
        trained = {name: tensor + 1 for name, tensor in weights.items()}
        return lichen.TrainingResult(trained, steps=plan.version, num_examples=self.counted)
    def evaluate(self, weights, samples):
        return {"loss": 6.0, "count": 12}

class Forgetful(Own):
    counted = None

class Empty(Own):
    counted = 0

class Silent(Own):
    def evaluate(self, weights, samples):
        return {}

class Boastful(Own):
    brings_samples = False
    counted = 10**6
    def train(self, weights, samples, plan, should_stop):
        return lichen.TrainingResult(weights, steps=1, num_examples=self.counted)
    def evaluate(self, weights, samples):
        return {"loss": 6.0, "count": 12}
"""


@pytest.fixture
def run(tmp_path, monkeypatch, train_job, version):
    """Run a job with one of the trainers above, as a worker does."""
    (tmp_path / "brought_app.py").write_text(_APP)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(trainer, **changes):
        job = train_job(
            trainer=f"brought_app:{trainer}",
            trainer_path=str(tmp_path),
            base=version(2),
            **{"samples_path": str(tmp_path / "samples.db"), **changes},
        )
        return JobRunner(clock=SystemClock()).run(job, lambda progress: None, lambda: False)

    yield run
    sys.modules.pop("brought_app", None)


def test_a_device_without_a_store_trains_on_what_its_trainer_brings(run, tmp_path):
    """The trainer's count is the update's, and no store is made; the plan names the version."""
    trained = run("Own")
    assert isinstance(trained, Trained), trained
    assert (trained.num_examples, trained.steps_done, trained.steps_planned) == (30, 2, 4)
    assert trained.metrics == {
        "before.loss": 6.0,
        "before.count": 12.0,
        "after.loss": 6.0,
        "after.count": 12.0,
    }
    assert not (tmp_path / "samples.db").exists()


def test_what_a_trainer_brings_is_capped_as_any_other(run):
    """No device weighs more than the task allows."""
    assert run("Own", max_examples=7).num_examples == 7


@pytest.mark.parametrize("trainer", ["Forgetful", "Empty"])
def test_a_trainer_that_counts_nothing_gives_no_update(run, trainer):
    """There would be nothing to weigh it by."""
    failed = run(trainer)
    assert isinstance(failed, JobFailed)
    assert "counted no example" in failed.reason


def test_a_trainer_that_does_not_evaluate_gives_an_update_all_the_same(run):
    """Without metrics."""
    assert run("Silent").metrics == {}


def test_no_trainer_counts_more_samples_than_it_was_given(run, digit_store):
    """An epoch more is no example more; and the agent counts what is held out."""
    trained = run("Boastful", samples_path=str(digit_store))
    assert isinstance(trained, Trained), trained
    assert trained.num_examples + trained.metrics["before.count"] == 200


def test_the_gate_for_samples_can_be_taken_away():
    """For a trainer that brings them, and for no other."""
    around = Surroundings(samples=0, minute=None, on_mains=None, temperature_c=None, load=None)
    assert "0 training samples" in shut_gate(GateSettings(), around)
    assert shut_gate(GateSettings(min_samples=0), around) is None
    own = {"device": "d", "fleet": "f", "broker": "mqtt://127.0.0.1", "state": Path("s"), "insecure": True}
    AgentConfiguration(**own, gates=GateSettings(min_samples=0), trainer="my_app:Mine")
    with pytest.raises(ValueError, match="min_samples = 0"):
        AgentConfiguration(**own, gates=GateSettings(min_samples=0))
    with pytest.raises(ValueError, match="negative"):
        GateSettings(min_samples=-1)
