"""The bench beside PyTorch: what of it needs no PyTorch."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.errors import LichenError
from hil.bench import __main__ as bench
from hil.bench import training
from hil.bench.recording import Recording
from hil.bench.step_times import StepProcess
from hil.bench.training_page import training_section
from models.build import build_artifact
from models.runtime import RUNTIMES, Batch, split_flat, zero_slots
from models.zoo.mlp import mlp

ROOT = Path(__file__).parents[2]
HYPER = {"lr": 0.1, "momentum": 0.9, "clip": 1.0, "mu": 0.01}


@pytest.fixture(scope="module")
def artifact():
    """A 5-7-3 MLP."""
    return build_artifact(mlp((5, 7, 3), seed=4, name="small"), loss="softmax_cross_entropy")


@pytest.fixture(scope="module")
def recording(artifact):
    """Three steps of the numpy runtime."""
    session, draw = RUNTIMES["numpy"].open(artifact), np.random.default_rng(3)
    weights = anchor = split_flat(artifact.initial_weights(), artifact.layout)
    slots, losses, states, held, batches = zero_slots(artifact), [], [dict(weights)], [], []
    for _ in range(3):
        x = draw.standard_normal((4, 5)).astype(np.float32)
        batches.append(Batch.of(x, draw.integers(0, 3, 4).astype(np.int32)))
        held.append(slots)
        result = session.step(weights, slots, batches[-1], HYPER, anchor)
        weights, slots = result.weights, result.slots
        losses.append(result.sums["loss"] / result.sums["weight"])
        states.append(weights)
    return Recording(hyper=HYPER, batches=batches, losses=losses, states=states, slots=held)


def test_a_recording_is_read_as_it_was_written(recording, artifact, tmp_path):
    """And the runtime that made it retraces it exactly, in a row and step by step."""
    recording.save(tmp_path / "r.npz")
    read = Recording.load(tmp_path / "r.npz")
    assert read.hyper == recording.hyper
    found = read.retraced_by(RUNTIMES["numpy"].open(artifact), artifact)
    assert (found.loss, found.weights, found.one_loss, found.one_weights) == (0, 0, 0, 0)


def test_a_wrong_step_shows_in_a_row_and_alone(recording, artifact):
    """A state that is off by 0.001 at one weight after the second step."""
    states = [dict(state) for state in recording.states]
    name = artifact.layout.tensors[0].name
    states[2][name] = states[2][name] + np.float32(1e-3)
    found = replace(recording, states=states).retraced_by(RUNTIMES["numpy"].open(artifact), artifact)
    assert found.weights == pytest.approx(1e-3, rel=1e-3)
    assert found.one_weights == pytest.approx(1e-3, rel=0.1)
    assert found.loss == 0 < found.one_loss


def test_without_pytorch_the_earlier_figures_stay(tmp_path, monkeypatch, capsys):
    """The reason is said, and the page is not touched."""
    monkeypatch.setattr(training, "FRAMEWORKS", tmp_path / "python")
    (tmp_path / "benchmarks.json").write_text('{"training": "earlier"}')
    assert bench.main(["--only", "training", "--docs", str(tmp_path)]) == 1
    assert "there is no PyTorch" in capsys.readouterr().err
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == {"training": "earlier"}
    assert not (tmp_path / "benchmarks.md").exists()


def test_a_process_that_ends_says_why():
    """Its last words are in the error."""
    with (
        StepProcess(
            sys.executable, ["hil.bench.runtime_process", "steps", "nowhere", "numpy"], folder=ROOT
        ) as child,
        pytest.raises(LichenError, match="nowhere"),
    ):
        child.fastest_s()


def test_the_page_shows_the_figures_that_are_there():
    """Every family has its row in each table."""
    figures = json.loads((ROOT / "docs" / "benchmarks.json").read_text())["training"]
    section = training_section(figures)
    for family in figures["families"]:
        assert section.count(f"\n| {family['family']} |") == 4
