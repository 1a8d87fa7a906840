"""Losses and metrics against their formulas, in every row, through whole artifacts."""

import numpy as np
import pytest
from onnx import helper

from fl_protocol.errors import ArtifactError
from models.build import build_artifact
from models.build.losses import LOSSES
from models.runtime import RUNTIMES, Batch, split_flat
from models.zoo.mlp import mlp

DRAW = np.random.default_rng(31)
X = DRAW.standard_normal((6, 4)).astype(np.float32)
ROWS = np.array([0.5, 1, 2, 0, 1, 1.5], np.float32)


def ending_in(activation, *, widths=(4, 5, 3)):
    """An MLP with one more node behind its output."""
    model = mlp(widths)
    model.graph.node.append(helper.make_node(activation, ["logits"], ["p"], name="end"))
    model.graph.output[0].name = "p"
    return model


def sums_of(model, loss, y, metrics=None):
    """The evaluation's sums in the numpy runtime, and the model's output."""
    artifact = build_artifact(model, loss=loss, metrics=metrics)
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    session = RUNTIMES["numpy"].open(artifact)
    return session.evaluate(weights, Batch(x=X, y=y, sample_weight=ROWS)), session.infer(weights, X)


def sigmoid(z):
    """The logistic function."""
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def test_sigmoid_cross_entropy_is_the_mean_over_a_rows_outputs():
    """With its accuracy: the share of outputs on the right side of one half."""
    y = np.array(DRAW.integers(0, 2, (6, 3)), np.float32)
    sums, z = sums_of(mlp((4, 5, 3)), "sigmoid_cross_entropy", y)
    p = sigmoid(z)
    rows = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1)
    assert sums["loss"] == pytest.approx((rows * ROWS).sum(), rel=1e-5)
    assert sums["correct"] == pytest.approx((((z > 0) == (y > 0.5)).mean(1) * ROWS).sum(), rel=1e-5)


def test_a_sigmoid_at_the_end_is_not_applied_twice():
    """The loss is that of the logits."""
    y = np.ones((6, 3), np.float32)
    ended, p = sums_of(ending_in("Sigmoid"), "sigmoid_cross_entropy", y)
    bare, z = sums_of(mlp((4, 5, 3)), "sigmoid_cross_entropy", y)
    assert ended == pytest.approx(bare, rel=1e-6)
    np.testing.assert_allclose(p, sigmoid(z), rtol=1e-5)


def test_mse_and_mae():
    """Means over a row's outputs."""
    y = DRAW.standard_normal((6, 3)).astype(np.float32)
    sums, z = sums_of(mlp((4, 5, 3)), "mse", y)
    assert sums["loss"] == pytest.approx((((z - y) ** 2).mean(1) * ROWS).sum(), rel=1e-5)
    assert sums["absolute_error"] == pytest.approx((np.abs(z - y).mean(1) * ROWS).sum(), rel=1e-5)


def test_huber_is_half_a_square_near_and_linear_far():
    """The bend is at 1."""
    y = (DRAW.standard_normal((6, 1)) * 3).astype(np.float32)
    sums, z = sums_of(mlp((4, 5, 1)), "huber", y)
    error = np.abs(z - y)
    rows = np.where(error < 1, error**2 / 2, error - 0.5).mean(1)
    assert (error < 1).any()
    assert (error > 1).any()
    assert sums["loss"] == pytest.approx((rows * ROWS).sum(), rel=1e-5)


def test_top_k_counts_rows_whose_class_is_among_the_k_likeliest():
    """Beside the accuracy."""
    y = DRAW.integers(0, 5, 6).astype(np.int32)
    sums, z = sums_of(mlp((4, 6, 5)), "softmax_cross_entropy", y, ["accuracy", "top2", "top3"])
    order = np.argsort(-z, 1)
    for name, places in (("correct", 1), ("top2", 2), ("top3", 3)):
        found = (order[:, :places] == y[:, None]).any(1)
        assert sums[name] == pytest.approx((found * ROWS).sum())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_brings_its_own_metrics(loss):
    """Where nobody names any; they are in the manifest."""
    artifact = build_artifact(mlp((4, 3)), loss=loss)
    assert artifact.manifest.metrics == LOSSES[loss].metrics


@pytest.mark.parametrize(
    ("loss", "metric", "words"),
    [
        ("mse", "top2", "top2 needs classes"),
        ("softmax_cross_entropy", "mae", "mae needs numbers"),
    ],
)
def test_a_metric_of_the_wrong_kind_is_refused(loss, metric, words):
    """Classes have no distance, numbers no rank."""
    with pytest.raises(ArtifactError, match=words):
        build_artifact(mlp((4, 3)), loss=loss, metrics=[metric])
