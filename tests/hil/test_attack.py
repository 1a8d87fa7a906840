"""Attackers: as many as are asked for, and each spoils what it says it spoils."""

import numpy as np
import pytest

from edge_agent.trainer import ArraySamples, TrainingResult
from fl_protocol.errors import ConfigError
from fl_protocol.plan import TrainingPlan
from hil.simulate.attack import ATTACKS, Attack, AttackingTrainer, attack_of, flipped_labels, poisoned
from hil.simulate.device_stream import generator

BEFORE = {"a": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4000, np.float32)}
STEP = {name: np.full_like(tensor, 0.5) for name, tensor in BEFORE.items()}


class Adding:
    """Adds half to every weight; keeps the labels that it was shown."""

    def __init__(self):
        self.seen = []

    def train(self, weights, samples, plan, should_stop):
        self.seen = [y for _, y in samples.batches(plan.batch_size, seed=plan.seed)]
        after = {name: weights[name] + STEP[name] for name in weights}
        return TrainingResult(weights={**after, "personal": np.ones(2, np.float32)}, steps=3)

    def evaluate(self, weights, samples):
        return {"correct": float(samples.all()[1].sum())}


def trained(attack, *, classes=0, plan_seed=1, device=0):
    trainer, plan = Adding(), TrainingPlan(seed=plan_seed)
    samples = ArraySamples(np.zeros((10, 2), np.float32), np.arange(10, dtype=np.int32) % 4)
    attacker = AttackingTrainer(trainer, attack, device=device, seed=5, classes=classes)
    result = attacker.train(BEFORE, samples, plan, lambda: False)
    return trainer, result, attacker.evaluate(BEFORE, samples)


@pytest.mark.parametrize(("kind", "factor"), [("sign_flip", -2), ("scaling", 2)])
def test_an_update_is_turned_or_blown_up(kind, factor):
    """The change from what was published, times the strength; personal tensors and figures stay."""
    _, result, figures = trained(Attack(kind=kind, strength=2))
    for name, before in BEFORE.items():
        np.testing.assert_allclose(result.weights[name] - before, factor * STEP[name], rtol=1e-6)
        assert result.weights[name].dtype == np.float32
    assert result.weights["personal"].tolist() == [1, 1]
    assert result.steps == 3
    assert figures == {"correct": 13}


def test_noise_is_as_large_as_its_strength_says_and_the_device_s_own():
    """Root mean square 3 times that of the update; the same training the same noise, another one another."""
    attack = Attack(kind="noise", strength=3)
    one = trained(attack)[1].weights["b"]
    assert np.sqrt(np.mean((one - 0.5) ** 2)) == pytest.approx(1.5, rel=0.05)
    np.testing.assert_array_equal(one, trained(attack)[1].weights["b"])
    assert (one != trained(attack, device=1)[1].weights["b"]).any()
    assert (one != trained(attack, plan_seed=2)[1].weights["b"]).any()


def test_labels_are_counted_from_the_other_end():
    """In training only; of how many classes is told, or the samples' largest is the last."""
    trainer, result, figures = trained(Attack(kind="label_flip"))
    assert sorted(np.concatenate(trainer.seen).tolist()) == sorted(3 - y % 4 for y in range(10))
    np.testing.assert_array_equal(result.weights["a"], BEFORE["a"] + STEP["a"])
    assert figures == {"correct": 13}
    trainer, _, _ = trained(Attack(kind="label_flip"), classes=10)
    assert sorted(np.concatenate(trainer.seen).tolist()) == sorted(9 - y % 4 for y in range(10))


def test_flipping_twice_changes_nothing():
    """For classes of any integer type, unsigned ones too, and for numbers."""
    classes = np.array([0, 3, 9])
    for y in (classes.astype(np.uint8), classes.astype(np.int32), np.array([[0.5], [-2]], np.float32)):
        once = flipped_labels(y, 10)
        assert once.dtype == y.dtype
        assert (once != y).any()
        np.testing.assert_array_equal(flipped_labels(once, 10), y)
    assert flipped_labels(np.zeros((3, 0), np.float32)).shape == (3, 0)


def test_strength_1_scaling_changes_nothing():
    """The identity, to the rounding of one difference."""
    after = {name: BEFORE[name] + STEP[name] for name in BEFORE}
    same = poisoned(Attack(kind="scaling"), BEFORE, after, generator(0, 0, "x"))
    for name, tensor in after.items():
        np.testing.assert_allclose(same[name], tensor, rtol=1e-6)


@pytest.mark.parametrize("share", [0, 0.05, 0.1, 0.37, 1])
@pytest.mark.parametrize("seed", range(3))
def test_of_any_number_of_devices_the_share_attacks(share, seed):
    """Rounded up or down, and a device stays what it is when others come."""
    chosen = np.cumsum([Attack(kind="noise", share=share).made_by(device, seed) for device in range(300)])
    assert (np.abs(chosen - share * np.arange(1, 301)) < 1 + 1e-9).all()


def test_another_seed_chooses_others():
    """Which ones attack is drawn."""
    attack = Attack(kind="noise", share=0.1)
    assert len({tuple(attack.made_by(device, seed) for device in range(10)) for seed in range(30)}) > 5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("signflip", "did you mean 'sign_flip'"),
        ("x", "there are sign_flip, scaling, noise, label_flip"),
        ({}, "which attack"),
        ({"kind": "noise", "share": 1.5}, "share = 1.5 is not from 0 to 1; nearest is 1"),
        ({"kind": "noise", "strength": 0}, "strength = 0 is not above 0"),
        ({"kind": "noise", "force": 1}, "unknown key"),
        ({"share": 0.1}, "kind: missing"),
    ],
)
def test_a_bad_word_is_refused_with_what_to_write(words, told):
    """The key, and what would do."""
    with pytest.raises(ConfigError, match=told):
        attack_of(words)


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_kind_alone_is_enough(kind):
    """A tenth of the devices, once as strong as it is."""
    assert attack_of(kind) == Attack(kind=kind, share=0.1, strength=1.0)
