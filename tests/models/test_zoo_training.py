"""The models of the zoo learn: real digits, and signals generated here for the tasks whose data are not ours.

The generated signals obey the physics of their task (a wrist that turns, a machine that vibrates, sounds
that glide), each example with its own speed, strength, noise and mounting; what a model reaches on them
says that it trains, not how good it is on recordings.
"""

import numpy as np
import pytest

from models.runtime import Batch, open_session, split_flat, zero_slots
from models.zoo import digits
from models.zoo.catalogue import find


class Trained:
    """A model of the zoo after ``epochs`` over ``x`` and ``y`` in batches of 32, in the best runtime here."""

    def __init__(self, name, x, y, *, epochs, lr, clip=1.0):
        artifact = find(name).open()
        self._session, _ = open_session(artifact)
        self.weights = anchor = split_flat(artifact.initial_weights(), artifact.layout)
        slots, draw = zero_slots(artifact), np.random.default_rng(1)
        hyper = {"lr": lr, "momentum": 0.9, "clip": clip}
        for _ in range(epochs):
            for rows in np.split(draw.permutation(len(x))[: len(x) // 32 * 32], len(x) // 32):
                batch = Batch.of(x[rows], y[rows])
                result = self._session.step(self.weights, slots, batch, hyper, anchor)
                self.weights, slots = result.weights, result.slots

    def __call__(self, x):
        return self._session.infer(self.weights, x)

    def accuracy(self, x, y):
        return float((self(x).argmax(1) == y).mean())


def turning_wrist(seed, count):
    """Windows of 2 s at 50 Hz from a watch: acceleration in g and angular rate in rad/s, and which of seven
    exercises it was.

    The forearm turns to and fro about one axis of its own in each exercise, and gravity turns with it;
    people differ in speed, reach, and in how the watch sits.
    """
    draw = np.random.default_rng(seed)
    axes = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, -1, 0]], float)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    rest = np.roll(axes, 2, axis=0)
    y = draw.integers(0, 7, count)
    time = np.arange(100) / 50
    rate = draw.uniform(0.4, 0.9, (count, 1)) * 2 * np.pi
    reach, phase = draw.uniform(0.5, 1.2, (count, 1)), draw.uniform(0, 2 * np.pi, (count, 1))
    angle = reach * np.sin(rate * time + phase)
    axis = (axes[y] + 0.25 * draw.standard_normal((count, 3)))[:, :, None]
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    gravity = np.broadcast_to(rest[y][:, :, None], (count, 3, 100))
    turn = -angle[:, None]  # Rodrigues' rotation of gravity into the watch's frame
    along = (axis * gravity).sum(1, keepdims=True) * axis
    across = np.cross(np.broadcast_to(axis, gravity.shape), gravity, axis=1)
    felt = along + (gravity - along) * np.cos(turn) + across * np.sin(turn)
    speed = (reach * rate * np.cos(rate * time + phase))[:, None] * axis
    signal = np.concatenate([felt, speed], axis=1) + 0.5 * draw.standard_normal((count, 6, 100))
    return signal.astype(np.float32), y.astype(np.int32)


def vibration(seed, count, *, fault=None):
    """Windows of 64 samples at 800 Hz from the three axes of a machine that turns 24 to 26 times a second.

    ``bearing`` adds the ringing of a struck part, ``loose`` a half-speed rattle; None is a sound machine.
    Every window is scaled to the same energy, so that loudness tells nothing.
    """
    draw = np.random.default_rng(seed)
    time = np.arange(64) / 800
    turn = 2 * np.pi * (draw.uniform(24, 26, (count, 1)) * time + draw.uniform(0, 1, (count, 1)))
    load = draw.uniform(0.7, 1.3, (count, 1))
    axes = [np.sin(turn), np.cos(turn) + 0.3 * np.sin(2 * turn), 0.5 * np.sin(2 * turn + 1)]
    signal = np.stack([load * axis for axis in axes], axis=1)
    if fault == "loose":
        signal += 0.4 * np.sign(np.sin(turn / 2 + 1))[:, None] * np.array([1, 0.3, 0.6])[:, None]
    if fault == "bearing":
        since = (time - draw.uniform(0, 0.02, (count, 1))) % 0.02
        signal += (np.exp(-since * 150) * np.sin(2 * np.pi * 290 * since))[:, None] * 0.6
    signal += 0.1 * draw.standard_normal(signal.shape)
    return (signal / np.sqrt((signal**2).mean((1, 2), keepdims=True))).astype(np.float32)


def spoken(seed, count):
    """Log-mel energies of a second of sound, 49 frames of ten bands, and which of twelve classes it is.

    Class 0 is noise alone; in 1 two bright bands glide anyhow; each of the others glides its own way, at
    a moment, pace, pitch and loudness of the speaker's.
    """
    draw = np.random.default_rng(seed)
    ways = np.random.default_rng(12).uniform(0.5, 8.5, (12, 3, 2))
    y = draw.integers(0, 12, count)
    x = 0.3 * draw.standard_normal((count, 49, 10))
    frames, bands = np.arange(49), np.arange(10)
    for row, label in enumerate(y):
        if label == 0:
            continue
        way = draw.uniform(0.5, 8.5, (3, 2)) if label == 1 else ways[label]
        start, length = draw.uniform(3, 18), draw.uniform(20, 28)
        at = np.clip((frames - start) / length, 0, 1) * 2
        loud = np.where((frames > start) & (frames < start + length), draw.uniform(1.5, 3), 0)
        for formant in (0, 1):
            centre = np.interp(at, [0, 1, 2], way[:, formant]) + draw.uniform(-0.25, 0.25)
            x[row] += loud[:, None] * np.exp(-((bands - centre[:, None]) ** 2))
    return x[:, None].astype(np.float32), y.astype(np.int32)


@pytest.mark.parametrize(("name", "least"), [("digits-cnn", 0.965), ("digits-mlp", 0.94)])
def test_digits_are_read(name, least):
    """Real images: six passes over 1,437 of them, judged by the 360 others; the convolutions read more."""
    train, held_out = digits.split()
    model = Trained(name, train.x, train.y, epochs=6, lr=0.05)
    assert model.accuracy(held_out.x, held_out.y) >= least


@pytest.mark.parametrize("name", ["motion-cnn", "motion-gru"])
def test_motions_are_told_apart(name):
    """Generated ones: chance is a seventh."""
    model = Trained(name, *turning_wrist(1, 960), epochs=4, lr=0.05)
    assert model.accuracy(*turning_wrist(2, 480)) >= 0.9


def test_faults_are_rebuilt_worse_than_sound_machines():
    """Trained on generated sound machines alone, the squared error tells faults that it has never seen: the
    chance that a faulty window scores above a sound one is near 1, for either fault."""
    sound = vibration(1, 1600)
    model = Trained("anomaly-autoencoder", sound, sound, epochs=8, lr=0.2)

    def scores(x):
        return ((model(x) - x) ** 2).mean((1, 2))

    usual = scores(vibration(2, 300))  # untrained, both faults score as a sound machine does: 0.5
    for fault in ("bearing", "loose"):
        odd = scores(vibration(3, 300, fault=fault))
        assert (odd[:, None] > usual[None]).mean() >= 0.95, fault


@pytest.mark.parametrize(
    ("name", "lr", "clip", "least"),
    [("keyword-ds-cnn", 0.2, 3.0, 0.7), ("keyword-ds-cnn-bn", 0.1, 1.0, 0.85)],
)
def test_words_are_told_apart(name, lr, clip, least):
    """Generated ones: chance is a twelfth, and one class has no pattern. The bounds leave room: after
    75 steps two runtimes have gone their own ways."""
    model = Trained(name, *spoken(1, 480), epochs=5, lr=lr, clip=clip)
    assert model.accuracy(*spoken(2, 240)) >= least
