"""Devices that do harm: they turn, blow up or drown their updates, or learn from false labels.

Sign flipping: Li et al.: RSA, Byzantine-Robust Stochastic Aggregation Methods (2019). Scaling: Bagdasaryan et
al.: How To Backdoor Federated Learning (2020), model replacement. Noise: Blanchard et al.: Machine Learning
with Adversaries (2017). Labels: Fang et al.: Local Model Poisoning Attacks to Byzantine-Robust Federated
Learning (2020).
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edge_agent.sample_form import Array
from edge_agent.trainer import Samples, ShouldStop, Trainer, TrainingResult, Weights, brings_samples
from fl_io.configuration import check_table
from fl_protocol.errors import ConfigError
from fl_protocol.plan import TrainingPlan
from hil.simulate.device_stream import DeviceStream, generator

__all__ = ["ATTACKS", "Attack", "AttackingTrainer", "attack_of", "flipped_labels", "poisoned"]

ATTACKS: Mapping[str, str] = MappingProxyType(
    {
        "sign_flip": "sends the update's opposite, strength times",
        "scaling": "sends the update strength times as large",
        "noise": "adds Gaussian noise of strength times the update's root mean square",
        "label_flip": "trains on labels counted from the other end",
    }
)
"""Kinds, and what each does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What a ``share`` of the devices does (see ``ATTACKS``), and how strongly.

    Raises:
        ValueError: an unknown kind, or a number out of range; says which is nearest.
    """

    kind: str
    share: float = 0.1
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ATTACKS:
            near = difflib.get_close_matches(self.kind, ATTACKS, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ATTACKS)}"
            raise ValueError(f"kind = {self.kind!r} is no attack, {known}")
        if not 0 <= self.share <= 1:
            raise ValueError(
                f"share = {self.share:g} is not from 0 to 1; nearest is {min(max(self.share, 0), 1)}"
            )
        if not 0 < self.strength <= 1e6:
            raise ValueError(f"strength = {self.strength:g} is not above 0 and at most 1e6")

    def made_by(self, device: int, seed: int) -> bool:
        """Whether a device attacks: of the first n, ``share * n`` do, rounded up or down, for every n."""
        start = DeviceStream(seed, 0, "attackers").uniform()
        return math.floor((device + 1) * self.share + start) > math.floor(device * self.share + start)


class AttackingTrainer:
    """Trains as ``trainer`` does, and spoils it as ``attack`` says.

    What it evaluates is told as it is: an attacker is not found by its own figures.
    """

    def __init__(self, trainer: Trainer, attack: Attack, *, device: int, seed: int, classes: int = 0) -> None:
        self._trainer = trainer
        self._attack = attack
        self._device = device
        self._seed = seed
        self._classes = classes

    @property
    def brings_samples(self) -> bool:
        """See ``Trainer``: as the trainer within."""
        return brings_samples(self._trainer)

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """See ``Trainer.train``. ``label_flip`` takes the samples' largest class where ``classes`` is 0."""
        if self._attack.kind == "label_flip":
            return self._trainer.train(weights, _Flipped(samples, self._classes), plan, should_stop)
        result = self._trainer.train(weights, samples, plan, should_stop)
        noise = generator(self._seed, self._device, f"noise of {plan.seed}")
        return replace(result, weights=poisoned(self._attack, weights, result.weights, noise))

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """See ``Trainer.evaluate``."""
        return self._trainer.evaluate(weights, samples)


def poisoned(attack: Attack, before: Weights, after: Weights, noise: np.random.Generator) -> Weights:
    """Weights ``after`` a training that began at ``before``, as an attacker gives them out.

    Tensors that are not among ``before`` stay as they are, as do all under ``label_flip``.
    """
    change: Callable[[Array], Array] = {
        "sign_flip": lambda delta: -attack.strength * delta,
        "scaling": lambda delta: attack.strength * delta,
        "noise": lambda delta: delta + _noise(delta, attack.strength, noise),
    }.get(attack.kind, lambda delta: delta)
    if attack.kind == "label_flip":
        return after
    return {
        name: (before[name] + change(tensor - before[name])).astype(np.float32) if name in before else tensor
        for name, tensor in after.items()
    }


def flipped_labels(y: Array, classes: int = 0) -> Array:
    """Classes int[n] counted from the other end: the first becomes the last. Numbers change their sign.

    ``classes`` 0 takes those from 0 to the largest in ``y``.
    """
    if y.dtype.kind not in "iu":
        return np.negative(y)
    largest = (classes or int(y.max(initial=0)) + 1) - 1
    return np.asarray(largest - y.astype(np.int64)).astype(y.dtype)


def attack_of(words: str | Mapping[str, Any], *, path: Path = Path("attack")) -> Attack:
    """An attack by its kind alone, or by a table of the file ``path``.

    Raises:
        ConfigError: no such kind, or a key or value that it does not take.
    """
    table = {"kind": words} if isinstance(words, str) else dict(words)
    if not table:
        raise ConfigError(f"{path}: which attack?", hint=f"there are {', '.join(ATTACKS)}")
    return check_table(table, Attack, path=path, within=("attack",))


class _Flipped:
    """Samples with false labels, see ``edge_agent.trainer.Samples``."""

    def __init__(self, samples: Samples, classes: int) -> None:
        self._samples = samples
        self._classes = classes or int(samples.all()[1].max(initial=0)) + 1

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, batch_size: int, *, epochs: int = 1, seed: int = 0) -> Iterator[tuple[Array, Array]]:
        """See ``Samples.batches``."""
        for x, y in self._samples.batches(batch_size, epochs=epochs, seed=seed):
            yield x, flipped_labels(y, self._classes)

    def all(self) -> tuple[Array, Array]:
        """See ``Samples.all``."""
        x, y = self._samples.all()
        return x, flipped_labels(y, self._classes)


def _noise(delta: Array, strength: float, noise: np.random.Generator) -> Array:
    size = float(np.sqrt(np.mean(np.square(delta, dtype=np.float64)))) if delta.size else 0.0
    return noise.standard_normal(delta.shape, dtype=np.float32) * np.float32(strength * size)
