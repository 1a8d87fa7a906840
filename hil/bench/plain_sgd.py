"""The work that simulators are compared on, in plain NumPy: two steps of SGD of a small MLP on few digits."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainer import shuffled_batches
from models.zoo import digits

__all__ = ["PLAN", "SAMPLES", "fleet_of", "score", "trained"]

Floats = NDArray[np.float32]
SAMPLES = 14
"""Of a device."""
PLAN: Mapping[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 0.1}
"""Two steps: a device's samples are one batch."""


def fleet_of(count: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Yield each device's ``x`` and ``y``, drawn from the digits with replacement."""
    training, _ = digits.split()
    rng = np.random.default_rng(seed)
    for _ in range(count):
        rows = rng.integers(0, len(training), SAMPLES)
        yield training.x[rows], training.y[rows]


def trained(base: Sequence[Floats], x: Any, y: Any, *, seed: int) -> list[Floats]:
    """The weights (float32 [32, 64], [32], [10, 32], [10]) after two steps on a device's samples."""
    w1, b1, w2, b2 = (tensor.copy() for tensor in base)
    rate = np.float32(PLAN["lr"])
    for rows in shuffled_batches(len(x), PLAN["batch_size"], epochs=PLAN["epochs"], seed=seed):
        xs, ys = x[rows], y[rows]
        hidden = np.maximum(xs @ w1.T + b1, 0)
        logits = hidden @ w2.T + b2
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        chances[np.arange(len(ys)), ys] -= 1
        chances /= np.float32(len(ys))
        back = (chances @ w2) * (hidden > 0)
        w2 -= rate * (chances.T @ hidden)
        b2 -= rate * chances.sum(axis=0)
        w1 -= rate * (back.T @ xs)
        b1 -= rate * back.sum(axis=0)
    return [w1, b1, w2, b2]


def score(weights: Sequence[Floats]) -> float:
    """The accuracy on the held-out digits."""
    _, kept = digits.split()
    w1, b1, w2, b2 = weights
    found = np.argmax(np.maximum(kept.x @ w1.T + b1, 0) @ w2.T + b2, axis=1)
    return float(np.mean(found == kept.y))
