"""Shares of a data set: the rows that a device would have as arrays of its own."""

import numpy as np
import pytest

from hil.simulate.share import Share
from hil.simulate.simulation import simulate
from hil.simulate.training import split_held_out
from models.zoo import digits
from models.zoo.catalogue import find

X = np.arange(600, dtype=np.float32).reshape(300, 2)
Y = np.arange(300, dtype=np.int32)
ROWS = np.array([299, 0, 7, 7, 256])


def test_a_share_is_its_rows():
    """In their order, as often as they are named, and beyond what a byte counts."""
    share = Share.of(X, Y, ROWS)
    x, y = share
    assert len(share) == len(ROWS)
    np.testing.assert_array_equal(x, X[ROWS])
    np.testing.assert_array_equal(y, Y[ROWS])
    np.testing.assert_array_equal(share.first(2)[1], Y[ROWS[:2]])


@pytest.mark.parametrize("portion", [0.0, 0.4])
def test_a_share_is_cut_as_arrays_are(portion):
    """The same rows are trained on, and the same held out."""
    whole = Share(X[ROWS], Y[ROWS])
    for own, other in zip(
        _arrays(split_held_out(Share.of(X, Y, ROWS), portion, seed=3)),
        _arrays(split_held_out(whole, portion, seed=3)),
        strict=True,
    ):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_fleet_of_shares_learns_what_one_of_arrays_does(stacked):
    """Of float64 samples too, which are stored as float32 once for all."""
    training, held_out = digits.split()
    draw = np.random.default_rng(1)
    drawn = [draw.integers(0, len(training), 20) for _ in range(6)]
    x = training.x.astype(np.float64)
    hashes = {
        simulate(
            find("digits-mlp").open(),
            devices,
            count=6,
            versions=2,
            fleet={"buffer": {"size": 4}},
            evaluation=(held_out.x, held_out.y),
            runtimes=("numpy",),
            stacked=stacked,
        ).state_hash
        for devices in (
            [Share.of(x, training.y, rows) for rows in drawn],
            [(x[rows], training.y[rows]) for rows in drawn],
        )
    }
    assert len(hashes) == 1


def _arrays(samples):
    parts = samples.parts()
    return (*parts.training.all(), *parts.held_out.all())
