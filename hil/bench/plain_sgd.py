"""The work that simulators are compared on, in plain NumPy: two steps of SGD of a small MLP on few digits."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainer import shuffled_batches
from hil.simulate.share import Share
from models.runtime import split_flat
from models.zoo import digits
from models.zoo.catalogue import find

__all__ = ["PLAN", "SAMPLES", "averaging", "fleet_of", "score", "trained"]

Floats = NDArray[np.float32]
SAMPLES = 14
"""Of a device."""
PLAN: Mapping[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 0.1}
"""Two steps: a device's samples are one batch."""


def fleet_of(count: int, seed: int) -> Iterator[Share]:
    """Yield each device's share of the digits, drawn with replacement."""
    training, _ = digits.split()
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield Share.of(training.x, training.y, rng.integers(0, len(training), SAMPLES))


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


def averaging(count: int, versions: int) -> Iterator[Sequence[Floats]]:
    """Federated averaging (McMahan et al., 2017) and nothing else: yield the weights that a fleet of
    ``count`` begins with, once all is ready, and those of each version."""
    artifact = find("digits-mlp").open()
    shares = [(share.x, share.y) for share in fleet_of(count, 0)]
    base = list(split_flat(artifact.initial_weights(), artifact.layout).values())
    yield base
    for version in range(versions):
        total = [np.zeros_like(tensor) for tensor in base]
        for number, (x, y) in enumerate(shares):
            for place, tensor in enumerate(trained(base, x, y, seed=version * count + number)):
                total[place] += tensor
        base = [summed / np.float32(count) for summed in total]
        yield base


def score(weights: Sequence[Floats]) -> float:
    """The accuracy on the held-out digits."""
    _, kept = digits.split()
    w1, b1, w2, b2 = weights
    found = np.argmax(np.maximum(kept.x @ w1.T + b1, 0) @ w2.T + b2, axis=1)
    return float(np.mean(found == kept.y))
