"""Trained ahead: updates that are encoded together are those that each device would have encoded alone."""

import numpy as np
import pytest

import lichen
from hil.simulate.trained_ahead import TrainedAhead
from models.zoo import digits
from models.zoo.mlp import digits_artifact

HARD = {
    "classes": {"phone": {}, "pi": {}},
    "availability": {"kind": "lognormal", "on_s": 60.0, "off_s": 30.0},
    "dropout": 0.2,
    "away_s": 20.0,
}
LEFT_OUT = {"codec": "sparse(bits=1,keep=0.1)"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A small MLP on the digits."""
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits", hidden=8)


def devices(count, seed):
    """Digits, from 3 to 22 of them for each device; the fourth has classes that the model has not."""
    training, _ = digits.split(seed=0)
    rng = np.random.default_rng(seed)
    for number in range(count):
        rows = rng.integers(0, len(training), 3 + number % 20)
        yield training.x[rows], training.y[rows] + 10 * (number == 3)


@pytest.mark.parametrize("options", [{}, HARD, LEFT_OUT], ids=["calm", "hard", "feedback"])
def test_a_run_is_what_it_is_one_by_one(artifact, monkeypatch, options):
    """Bit for bit, with powers that fail and one device that cannot train among them."""
    settings = {
        "count": 20,
        "versions": 3,
        "plan": {"epochs": 2, "batch_size": 16, "lr": 0.3},
        "fleet": {"buffer": {"size": 8, "flush_after_s": 300.0}},
        "runtimes": ("numpy",),
        **options,
    }
    groups = []
    learn = TrainedAhead.learn

    def counted(self, group, base):
        groups.append(len(group))
        return learn(self, group, base)

    monkeypatch.setattr(TrainedAhead, "learn", counted)
    together = lichen.simulate(artifact, devices, **settings)
    assert max(groups) > 1
    monkeypatch.setattr(TrainedAhead, "suits", lambda artifact: False)
    assert lichen.simulate(artifact, devices, **settings) == together
