"""What training code is handed and gives back: the seam for PyTorch, Keras, scikit-learn, anything.

A trainer never sees codec, network or files. It gets the published weights and the device's samples, and
returns its own weights; the agent makes the delta, counts examples and encodes.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_agent.sample_form import Array
from fl_io.users_code import made
from fl_protocol.errors import ConfigError
from fl_protocol.plan import TrainingPlan

__all__ = [
    "ArraySamples",
    "Samples",
    "ShouldStop",
    "Trainer",
    "TrainingResult",
    "Weights",
    "brings_samples",
    "epoch_generator",
    "load_trainer",
    "planned_steps",
    "shuffled_batches",
]

Weights: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Tensors by name, read-only where they are handed to a trainer."""
ShouldStop: TypeAlias = Callable[[], bool]
"""Ask before each step; once true, return what there is: a training cut short counts for its share."""


class Samples(Protocol):
    """Samples to train on or to evaluate with."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batches(self, batch_size: int, *, epochs: int = 1, seed: int = 0) -> Iterator[tuple[Array, Array]]:
        """Yield ``(x, y)`` of at most ``batch_size`` rows, shuffled anew in each epoch, all rows in each.

        The same seed gives the same order. ``y`` has shape ``(rows, 0)`` where samples have no label.
        """
        ...

    def all(self) -> tuple[Array, Array]:
        """Every ``(x, y)`` at once, in the order they were added."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Trained weights, and the number of optimizer steps taken.

    ``num_examples`` is the number of distinct examples that were trained on, where the trainer knows better
    than the agent, which counts the samples it handed over. ``sums`` are figures of the training itself,
    summed over its steps (``grad_norm``); an update carries them under ``after.*``.
    """

    weights: Weights
    steps: int
    num_examples: int | None = None
    sums: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Trainer(Protocol):
    """Training code: a class whose instances are made without arguments.

    A class with the attribute ``brings_samples = True`` trains on data that it finds by itself: it is asked
    to train where the store has no samples too, must say ``num_examples``, and adds ``count``, the number of
    examples, to the sums of ``evaluate``. ``min_samples = 0`` under ``[gates]`` then opens the gate that
    waits for samples. One with an attribute ``checkpoint`` is given a ``Checkpoint`` there before ``train``.
    """

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """Train from ``weights`` (copy what you change) under ``plan``, whose ``seed`` is this device's.

        The result holds the same tensors, of the same shapes. Where the model has personal tensors they are
        among ``weights``; a result may leave them out, and they stay as they are.
        """
        ...

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """Sums over ``samples`` (never means), so that devices can be added up."""
        ...


class ArraySamples:
    """Samples in memory: ``x`` [n, ...] and ``y`` [n, ...]."""

    def __init__(self, x: Array, y: Array, *, generator: "MakeGenerator | None" = None) -> None:
        self._x = x
        self._y = y
        self._generator = generator or epoch_generator

    def __len__(self) -> int:
        return len(self._x)

    def batches(self, batch_size: int, *, epochs: int = 1, seed: int = 0) -> Iterator[tuple[Array, Array]]:
        """See ``Samples.batches``."""
        drawn = shuffled_batches(len(self), batch_size, epochs=epochs, seed=seed, generator=self._generator)
        for rows in drawn:
            yield self._x[rows], self._y[rows]

    def all(self) -> tuple[Array, Array]:
        """See ``Samples.all``."""
        return self._x, self._y


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """What ``default_rng([seed, epoch])`` gives; words that are words already spare it half of its time."""
    if not 0 <= seed < 1 << 32:
        return np.random.default_rng([seed, epoch])
    return np.random.Generator(np.random.PCG64(np.array([seed, epoch], np.uint32)))


MakeGenerator: TypeAlias = Callable[[int, int], np.random.Generator]
"""``epoch_generator``, or what gives the same generators in another way."""


def shuffled_batches(
    count: int, batch_size: int, *, epochs: int, seed: int, generator: MakeGenerator = epoch_generator
) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers, a batch at a time: each epoch is a new permutation of ``range(count)``."""
    if batch_size < 1:
        raise ValueError("a batch has at least one row")
    for epoch in range(epochs):
        order = generator(seed, epoch).permutation(count)
        for start in range(0, count, batch_size):
            yield order[start : start + batch_size]


def planned_steps(plan: TrainingPlan, examples: int) -> int:
    """Steps of a full training on ``examples`` samples."""
    steps = plan.epochs * math.ceil(examples / plan.batch_size)
    return min(steps, plan.max_steps) if plan.max_steps else steps


def brings_samples(trainer: Trainer) -> bool:
    """Whether a trainer finds its data by itself."""
    return bool(getattr(trainer, "brings_samples", False))


def load_trainer(name: str, folder: str = "") -> Trainer:
    """Make the trainer ``module:Class``, from Python's path or else from ``folder``.

    Raises:
        ConfigError: no such module or class, one that fails as it is made, or one that is no trainer.
        MemoryError: its packages take more memory than there is.
    """
    trainer: object = made(name, what="trainer", folder=folder)
    if not isinstance(trainer, Trainer):
        raise ConfigError(f"{name!r} is no trainer", hint="a trainer has the methods train and evaluate")
    return trainer
