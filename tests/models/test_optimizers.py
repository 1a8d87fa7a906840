"""Optimizers against their papers' formulas, step after step, in every runtime."""

import numpy as np
import pytest

from models.build import build_artifact
from models.runtime import RUNTIMES, Batch, split_flat, zero_slots
from models.zoo.mlp import mlp

STEPS = 8
CLIP = 0.5


def sgd(w, g, state, *, lr=0.1, momentum=0.9):
    """SGD with momentum."""
    state["v"] = momentum * state.get("v", 0) + g
    return w - lr * state["v"]


def nesterov(w, g, state, *, lr=0.1, momentum=0.9):
    """Sutskever et al. (2013), in the form of PyTorch."""
    state["v"] = momentum * state.get("v", 0) + g
    return w - lr * (g + momentum * state["v"])


def adamw(w, g, state, *, lr=0.01, decay=0.1, epsilon=1e-3):
    """Loshchilov, Hutter (2019), algorithm 2."""
    count = state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    mean, spread = state["m"] / (1 - 0.9**count), state["v"] / (1 - 0.999**count)
    return w - lr * (mean / (np.sqrt(spread) + epsilon) + decay * w)


FORMULAS = {
    "sgd": (sgd, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (nesterov, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (adamw, {"lr": 0.01, "weight_decay": 0.1, "epsilon": 1e-3}),
}


def gradient(w, b, x, y):
    """Of the mean squared error of a linear model, clipped to ``CLIP``."""
    error = 2 * (x @ w.T + b - y) / y.size
    gw, gb = error.T @ x, error.sum(0)
    scale = min(1, CLIP / np.sqrt((gw**2).sum() + (gb**2).sum()))
    return gw * scale, gb * scale


@pytest.mark.parametrize("runtime", ["onnx", "numpy"])
@pytest.mark.parametrize("optimizer", FORMULAS)
def test_steps_are_those_of_the_formula(optimizer, runtime):
    """A linear model whose gradient is written out by hand, with clipping, within 1e-5."""
    if runtime == "onnx":
        pytest.importorskip("onnxruntime")
    formula, hyper = FORMULAS[optimizer]
    artifact = build_artifact(mlp((4, 3)), loss="mse", optimizer=optimizer)
    session = RUNTIMES[runtime].open(artifact)
    weights = anchor = split_flat(artifact.initial_weights(), artifact.layout)
    slots = zero_slots(artifact)
    by_hand = [np.asarray(weights[name], np.float64) for name in ("layer1.weight", "layer1.bias")]
    states = [{}, {}]
    draw = np.random.default_rng(12)
    for _ in range(STEPS):
        x = draw.standard_normal((5, 4)).astype(np.float32)
        y = draw.standard_normal((5, 3)).astype(np.float32)
        result = session.step(weights, slots, Batch.of(x, y), {**hyper, "clip": CLIP, "mu": 0.0}, anchor)
        weights, slots = result.weights, result.slots
        gradients = gradient(*by_hand, x, y)
        by_hand = [formula(*at) for at in zip(by_hand, gradients, states, strict=True)]
        for name, expected in zip(("layer1.weight", "layer1.bias"), by_hand, strict=True):
            np.testing.assert_allclose(weights[name], expected, atol=1e-5, rtol=1e-5)
    if optimizer == "adamw":
        assert slots["t"].shape == ()
        assert slots["t"] == STEPS


def test_adamw_counts_its_steps_in_one_scalar():
    """Two moments per tensor, and a counter that starts at 0 in each participation."""
    artifact = build_artifact(mlp((4, 3)), loss="mse", optimizer="adamw")
    slots = zero_slots(artifact)
    assert artifact.manifest.slots == ("m", "v", "t")
    assert slots.keys() == {f"{slot}.layer1.{name}" for slot in "mv" for name in ("weight", "bias")} | {"t"}
    assert not any(array.any() for array in slots.values())


def test_the_defaults_of_adamw_are_the_papers():
    """lr 0.001, betas 0.9 and 0.999, epsilon 1e-8."""
    hyper = build_artifact(mlp((4, 3)), loss="mse", optimizer="adamw").manifest.hyper
    assert hyper == {
        "lr": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.01,
        "mu": 0.0,
        "clip": 0.0,
    }
