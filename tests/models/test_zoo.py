"""The zoo: the data are the real ones, the models are the same everywhere."""

import hashlib
from importlib import resources

import numpy as np
import pytest

from models.zoo import digits
from models.zoo.mlp import mlp


def test_the_digits_are_all_there():
    """1,797 images of 64 numbers from 0 to 1, every digit about equally often."""
    everything = digits.load()
    assert len(everything) == 1797
    assert everything.x.shape == (1797, 64)
    assert everything.x.dtype == np.float32
    assert everything.y.dtype == np.int32
    assert (everything.x.min(), everything.x.max()) == (0, 1)
    assert np.bincount(everything.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_digits_are_those_of_the_source():
    """Bit for bit what scikit-learn 1.9 bundles of the UCI set, in the same order."""
    everything = digits.load()
    content = (everything.x * 16).astype(np.uint8).tobytes() + everything.y.astype(np.uint8).tobytes()
    assert hashlib.sha256(content).hexdigest() == (
        "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    )


def test_the_digits_are_small_and_attributed():
    """At most 60 KB, with the licence beside them."""
    folder = resources.files("models.zoo.digits")
    assert len(folder.joinpath("digits.npz").read_bytes()) <= 60_000
    assert "CC BY 4.0" in folder.joinpath("ATTRIBUTION.md").read_text()


def test_the_split_holds_out_the_same_digits_for_every_seed():
    """Accuracies of two runs are of the same 360 images; only the order of training changes."""
    first, second = digits.split(seed=0), digits.split(seed=1)
    np.testing.assert_array_equal(first[1].x, second[1].x)
    assert (len(first[0]), len(first[1])) == (1437, 360)
    assert not np.array_equal(first[0].y, second[0].y)
    both = np.concatenate([first[0].x, first[1].x])
    everything = digits.load().x
    np.testing.assert_array_equal(both[np.lexsort(both.T)], everything[np.lexsort(everything.T)])


def test_another_split_may_be_asked_for():
    """For research that wants several."""
    assert not np.array_equal(digits.split()[1].y, digits.split(held_out_seed=5)[1].y)


def test_the_split_is_frozen():
    """A changed split would change every published accuracy."""
    held_out = digits.split()[1]
    assert hashlib.sha256(held_out.y.astype("<i4").tobytes()).hexdigest()[:16] == "ec05785160cc58b0"


def test_a_network_is_the_same_bytes_for_a_seed():
    """Initial weights are part of an experiment."""
    assert mlp((4, 3), seed=2).SerializeToString() == mlp((4, 3), seed=2).SerializeToString()
    assert mlp((4, 3), seed=2) != mlp((4, 3), seed=3)


def test_initial_weights_are_spread_as_he_says():
    """Variance 2 / fan_in, mean 0, biases 0."""
    from onnx import numpy_helper

    weight, bias = (numpy_helper.to_array(t) for t in mlp((100, 400), seed=1).graph.initializer)
    assert weight.var() == pytest.approx(2 / 100, rel=0.02)
    assert weight.mean() == pytest.approx(0, abs=0.003)
    assert not bias.any()
