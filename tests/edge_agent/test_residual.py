"""The residual: late is not lost, and what is kept is kept for the right codec and layout alone."""

import numpy as np
import pytest

from edge_agent.residual import ROW, added, pack_residual, remainder, unpack_residual
from fl_protocol.codec import codec_for, codec_seed, decode
from fl_protocol.errors import LayoutError, StorageError
from fl_protocol.layout import TensorLayout

LAYOUT = TensorLayout.of([("w", [70, 1000]), ("b", [5]), ("mean", [3], "buffer")])
SPARSE = codec_for("sparse(bits=1,keep=0.05)")


def gaussian(size, seed=0):
    """float32[size]."""
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def kept(left, number=0, codec=SPARSE, layout=LAYOUT):
    """What is kept of ``left``."""
    return pack_residual(left, codec, layout, update_id=number.to_bytes(16, "big"))


def test_what_is_kept_comes_back_within_a_level():
    """Four bits an element: the error is below the row's largest magnitude over 7, and zeros stay zeros."""
    left = gaussian(LAYOUT.weight_size)
    left[::3] = 0
    back = unpack_residual(kept(left), SPARSE, LAYOUT)
    rows = np.resize(np.abs(left), (-(-len(left) // ROW), ROW)).max()
    assert np.abs(back - left).max() <= rows / 7
    assert not back[::3].any()
    assert len(kept(left)) < 0.6 * len(left)


def test_nothing_is_lost_on_average():
    """The mean of many keepings is the residual: small elements are not rounded away."""
    left = gaussian(LAYOUT.weight_size) * np.float32(0.01)
    left[::ROW] = 1
    mean = np.mean([unpack_residual(kept(left, n), SPARSE, LAYOUT) for n in range(60)], axis=0)
    small = np.ones(len(left), bool)
    small[::ROW] = False
    error, size = np.linalg.norm((mean - left)[small]), np.linalg.norm(left[small])
    once = np.linalg.norm((unpack_residual(kept(left), SPARSE, LAYOUT) - left)[small])
    assert error < 0.2 * once
    assert size > 0


def test_a_residual_of_zeros_costs_next_to_nothing():
    """Where a delta is sparse itself, what is left of it is too: a card is not worn for it."""
    assert len(kept(np.zeros(LAYOUT.weight_size, np.float32))) < 0.03 * LAYOUT.weight_size


@pytest.mark.parametrize(
    ("codec", "layout"),
    [
        ("sparse(bits=2,keep=0.05)", LAYOUT),
        ("sparse(bits=1,keep=0.05)", TensorLayout.of([("w", [70, 1000]), ("c", [5])])),
    ],
)
def test_another_codec_or_layout_does_not_get_it(codec, layout):
    """It is dropped, and the delta goes as it is."""
    state = kept(gaussian(LAYOUT.weight_size))
    other = codec_for(codec)
    with pytest.raises(LayoutError):
        unpack_residual(state, other, layout)
    delta = gaussian(layout.size, 1)
    assert added(delta, state, other, layout) is delta


def test_a_damaged_one_is_dropped():
    """A failing card costs what was left out, not the update."""
    state = bytearray(kept(gaussian(LAYOUT.weight_size)))
    state[-5] ^= 1
    with pytest.raises(StorageError, match="damaged"):
        unpack_residual(bytes(state), SPARSE, LAYOUT)
    delta = gaussian(LAYOUT.size, 1)
    assert added(delta, bytes(state), SPARSE, LAYOUT) is delta


@pytest.mark.parametrize("spec", ["eden(bits=1)", "float32", "sparse(feedback=0)"])
def test_a_codec_without_feedback_keeps_and_adds_nothing(spec):
    """Nor does it read what another one left."""
    codec, delta = codec_for(spec), gaussian(LAYOUT.size)
    payload = codec.encode(delta, LAYOUT, codec_seed(bytes(16)))
    assert remainder(delta, payload, codec, LAYOUT, update_id=bytes(16)) == b""
    assert added(delta, b"what was left", codec, LAYOUT) is delta


def test_a_residual_longer_than_waiting_makes_it_is_shortened():
    """One training that went wrong does not spoil the next hundred; buffers are never touched."""
    state = kept(gaussian(LAYOUT.weight_size) * np.float32(1e6))
    delta = gaussian(LAYOUT.size, 1)
    summed = added(delta, state, SPARSE, LAYOUT)
    weights = slice(0, LAYOUT.weight_size)
    assert np.linalg.norm((summed - delta)[weights]) == pytest.approx(
        20 * np.linalg.norm(delta[weights]), rel=1e-3
    )
    assert (summed[LAYOUT.weight_size :] == delta[LAYOUT.weight_size :]).all()


def test_over_many_updates_everything_arrives():
    """As kept, at four bits: the mean of what was sent comes to the delta."""
    layout = TensorLayout.of([("w", [2000])])
    delta, state, sent, rounds = gaussian(2000), b"", np.zeros(2000), 300
    for number in range(rounds):
        update_id = number.to_bytes(16, "big")
        whole = added(delta, state, SPARSE, layout)
        payload = SPARSE.encode(whole, layout, codec_seed(update_id))
        state = remainder(whole, payload, SPARSE, layout, update_id=update_id)
        sent += decode(SPARSE, payload, layout, codec_seed(update_id))
    assert np.linalg.norm(sent / rounds - delta) < 0.2 * np.linalg.norm(delta)
