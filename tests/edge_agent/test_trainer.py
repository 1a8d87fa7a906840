"""The seam for training code: samples in memory, plans, and trainers loaded by name."""

import sys

import numpy as np
import pytest

from edge_agent.trainer import ArraySamples, Trainer, load_trainer, planned_steps
from fl_protocol.errors import ConfigError
from fl_protocol.plan import TrainingPlan

_GOOD = """
class Mine:
    def train(self, weights, samples, plan, should_stop): ...
    def evaluate(self, weights, samples): ...
class Half:
    def train(self, weights, samples, plan, should_stop): ...
class Hungry:
    def __init__(self): raise MemoryError
class Broken:
    def __init__(self): raise RuntimeError("no camera")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's module, and a folder ``models`` that must hide nothing."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_trainer_app.py").write_text(_GOOD)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the wrong models')")
    yield str(tmp_path)
    sys.modules.pop("my_trainer_app", None)


def test_a_trainer_is_found_by_name(folder):
    """From a folder that comes last on the path."""
    assert isinstance(load_trainer("my_trainer_app:Mine", folder), Trainer)
    load_trainer("my_trainer_app:Mine", folder)
    assert sys.path.count(folder) == 1
    assert sys.path[-1] == folder


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_trainer_app", "module:Class"),
        (":Mine", "module:Class"),
        ("no_such_module:Mine", "No module named"),
        ("my_trainer_app:Other", "Other"),
        ("my_trainer_app:Half", "train and evaluate"),
        ("my_trainer_app:Broken", "no camera"),
    ],
)
def test_a_trainer_that_cannot_be_used_says_why(folder, name, says):
    """Whatever is wrong with it is a ConfigError with the cause."""
    with pytest.raises(ConfigError, match=says):
        load_trainer(name, folder)


def test_a_trainer_that_finds_no_memory_is_not_a_fault_of_its_name(folder):
    """More may be free later: the job says so."""
    with pytest.raises(MemoryError):
        load_trainer("my_trainer_app:Hungry", folder)


@pytest.mark.parametrize(
    ("plan", "examples", "steps"),
    [
        (TrainingPlan(epochs=3, batch_size=10), 25, 9),
        (TrainingPlan(epochs=3, batch_size=10, max_steps=4), 25, 4),
        (TrainingPlan(epochs=1, batch_size=10, max_steps=40), 25, 3),
        (TrainingPlan(epochs=2, batch_size=64), 1, 2),
    ],
)
def test_planned_steps(plan, examples, steps):
    """Batches of all epochs, up to the plan's limit."""
    assert planned_steps(plan, examples) == steps


def test_samples_in_memory_keep_rows_together():
    """Each epoch has every row once, ``x`` beside its ``y``."""
    samples = ArraySamples(np.arange(10.0)[:, np.newaxis], np.arange(10))
    batches = list(samples.batches(4, epochs=2, seed=1))
    assert [len(x) for x, _ in batches] == [4, 4, 2] * 2
    assert all(np.array_equal(x.ravel(), y) for x, y in batches)
    assert sorted(np.concatenate([y for _, y in batches[:3]])) == list(range(10))
