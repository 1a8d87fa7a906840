"""A session of a fixed number of rows takes any number: checked against the same session without."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.errors import ArtifactError
from models.build import build_artifact
from models.runtime import Batch, split_flat, zero_slots
from models.runtime.numpy_runtime import NumpyRuntime
from models.runtime.static_batch import StaticBatchSession

_SPEC = importlib.util.spec_from_file_location("forward", Path(__file__).parent / "forward.py")
forward = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(forward)
network, w, i64 = forward.network, forward.w, forward.i64

HYPER = {"lr": 0.1, "momentum": 0.9, "mu": 0.0, "clip": 0.5}


class ExactlyFour:
    """A session that refuses all but four rows, as a graph without a free dimension does."""

    def __init__(self, session):
        self._session = session
        self.name = session.name

    def step(self, weights, slots, batch, hyper, anchor, **named):
        """One step of four rows."""
        assert len(batch.x) == len(batch.y) == len(batch.sample_weight) == 4
        return self._session.step(weights, slots, batch, hyper, anchor, **named)

    def evaluate(self, weights, batch):
        """The sums over four rows."""
        assert len(batch.x) == len(batch.y) == len(batch.sample_weight) == 4
        return self._session.evaluate(weights, batch)

    def infer(self, weights, x):
        """The outputs of four rows."""
        assert len(x) == 4
        return self._session.infer(weights, x)


@pytest.fixture
def free(small_artifact):
    """The session that takes any number of rows by itself."""
    return NumpyRuntime().open(small_artifact)


@pytest.fixture
def fixed(free):
    """The same, four rows at a time."""
    return StaticBatchSession(ExactlyFour(free), rows=4)


@pytest.fixture
def weights(small_artifact):
    """The initial weights."""
    return split_flat(small_artifact.initial_weights(), small_artifact.layout)


def rows(count):
    """That many rows, of different weights."""
    draw = np.random.default_rng(count)
    return Batch(
        x=draw.standard_normal((count, 5)).astype(np.float32),
        y=draw.integers(0, 3, count).astype(np.int32),
        sample_weight=draw.choice(np.array([0.5, 1, 2], np.float32), count),
    )


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_short_step_is_that_of_its_own_rows(small_artifact, free, fixed, weights, count):
    """Weights, slots, sums and the gradient's norm: padding weighs nothing."""
    slots, batch = zero_slots(small_artifact), rows(count)
    wanted = free.step(weights, slots, batch, HYPER, weights)
    got = fixed.step(weights, slots, batch, HYPER, weights)
    assert got.sums == pytest.approx(wanted.sums, rel=1e-6)
    assert got.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-6)
    for kind in ("weights", "slots"):
        for name, array in getattr(wanted, kind).items():
            np.testing.assert_allclose(getattr(got, kind)[name], array, atol=1e-7)


def test_a_step_of_too_many_rows_is_refused_with_both_remedies(small_artifact, fixed, weights):
    """Two steps are not one: the plan or the artifact must change."""
    with pytest.raises(ArtifactError, match="5 rows") as caught:
        fixed.step(weights, zero_slots(small_artifact), rows(5), HYPER, weights)
    assert "batch size of at most 4" in caught.value.hint
    assert "--batch" in caught.value.hint


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_evaluation_and_inference_take_any_number_of_rows(free, fixed, weights, count):
    """In pieces, the last one padded; none at all gives sums of 0 and no output."""
    batch = rows(count)
    assert fixed.evaluate(weights, batch) == pytest.approx(free.evaluate(weights, batch), rel=1e-5)
    output = fixed.infer(weights, batch.x)
    assert output.shape == (count, 3)
    np.testing.assert_allclose(output, free.infer(weights, batch.x), atol=1e-6)


def test_rows_that_fill_up_are_such_as_the_model_takes():
    """Of a row of zeros this one would make 0 / 0: no number, which no weight of 0 takes out of a sum."""
    nodes = [
        ("ReduceL1", "x axes", "size", {"keepdims": 1}),
        ("Div", "x size", "scaled", {}),
        ("Gemm", "scaled w", "z", {}),
    ]
    model = network([5], nodes, {"w": w(5, 3), "axes": i64(1)})
    artifact = build_artifact(model, loss="softmax_cross_entropy")
    session = NumpyRuntime().open(artifact)
    fixed = StaticBatchSession(ExactlyFour(session), rows=4)
    weights, batch = split_flat(artifact.initial_weights(), artifact.layout), rows(3)
    wanted = session.step(weights, zero_slots(artifact), batch, HYPER, weights)
    got = fixed.step(weights, zero_slots(artifact), batch, HYPER, weights)
    assert got.sums == pytest.approx(wanted.sums, rel=1e-6)
    np.testing.assert_allclose(got.weights["w"], wanted.weights["w"], atol=1e-7)
