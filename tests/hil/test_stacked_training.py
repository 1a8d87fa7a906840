"""Stacked training: a fleet learns what it learns one device at a time."""

import numpy as np
import pytest

import lichen
from fl_protocol.errors import ConfigError
from models.zoo import digits
from models.zoo.mlp import digits_artifact

FLEET = {"buffer": {"size": 12, "flush_after_s": 300.0}}
CALM = {}
HARD = {
    "classes": {"phone": {}, "pi": {}},
    "availability": {"kind": "lognormal", "on_s": 60.0, "off_s": 30.0},
    "dropout": 0.2,
    "away_s": 20.0,
}
LABELS = {"attack": {"kind": "label_flip", "share": 0.25}}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A small MLP on the digits."""
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits", hidden=8)


def devices(count, seed):
    """Digits, from 3 to 41 of them for each device."""
    training, _ = digits.split(seed=0)
    rng = np.random.default_rng(seed)
    for number in range(count):
        rows = rng.integers(0, len(training), 3 + number % 39)
        yield training.x[rows], training.y[rows]


def run(artifact, **options):
    """Thirty devices with different numbers of rows; each reports what it measured before and after."""
    settings = {
        "count": 30,
        "versions": 4,
        "plan": {"epochs": 2, "batch_size": 16, "lr": 0.3, "momentum": 0.5, "mu": 0.01, "clip": 2.0},
        "fleet": FLEET,
        "runtimes": ("numpy",),
    }
    return lichen.simulate(artifact, devices, **{**settings, **options})


@pytest.mark.parametrize("options", [CALM, HARD, LABELS], ids=["calm", "hard", "labels"])
def test_a_fleet_learns_what_it_learns_one_by_one(artifact, options):
    """The same updates and virtual times, and a state that is the same to the rounding of float32; a stack
    that is drawn otherwise, or one too many for a device that failed, would change more."""
    single, stacked = run(artifact, **options), run(artifact, stacked=True, **options)
    assert (single.accepted, single.trainings, single.losses) == (
        stacked.accepted,
        stacked.trainings,
        stacked.losses,
    )
    assert [row.virtual_s for row in single.history] == [row.virtual_s for row in stacked.history]
    assert stacked.accuracy == pytest.approx(single.accuracy, abs=0.01)
    for name, value in single.metrics.items():
        assert stacked.metrics[name] == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("options", [CALM, HARD], ids=["calm", "hard"])
def test_the_same_seed_gives_the_same_run(artifact, options):
    """Who shares a stack depends on the seed alone."""
    assert run(artifact, stacked=True, **options) == run(artifact, stacked=True, **options)


def test_bad_samples_are_their_devices_own_fault(artifact):
    """A class that the model has not ends one device's training, and not those of its stack."""

    def some_bad(count, seed):
        for number, (x, y) in enumerate(devices(count, seed)):
            yield x, y + 10 if number == 3 else y

    result = lichen.simulate(
        artifact,
        some_bad,
        count=30,
        versions=2,
        plan={"epochs": 1, "batch_size": 16, "lr": 0.3},
        fleet=FLEET,
        runtimes=("numpy",),
        stacked=True,
    )
    assert result.versions == 2
    assert result.devices_heard == 29


def test_a_trainer_of_ones_own_is_not_stacked(artifact):
    """Only a graph can be; said before anything starts."""
    with pytest.raises(ConfigError, match="cannot be stacked"):
        run(artifact, stacked=True, trainer=object)
