"""Stacked training: what several devices are to learn is computed at once, in arrays with a device axis.

What is learned is the same to the rounding of float32, and NumPy is called once for all of them.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_agent.graph_trainer import GRAD_NORM, GraphTrainer, dropout_seed
from edge_agent.sample_form import Array
from edge_agent.trainer import TrainingResult, Weights, shuffled_batches
from fl_protocol.layout import TensorLayout
from fl_protocol.plan import TrainingPlan
from hil.simulate.epoch_generators import EpochGenerators
from hil.simulate.lessons import Lesson, Lessons, Pending
from hil.simulate.share import Share
from models.runtime import Batch, TrainingArtifact, join_flat, zero_slots
from models.runtime.stacked_session import StackedSession

__all__ = ["STACK", "StackedTraining"]

STACK = 50
"""Devices of one stack: enough that the calls are paid once, few enough that all stays in the cache."""
STACK_BYTES = 1 << 26
"""What the weights, gradients and slots of a stack may take, about."""
_COPIES = 6
"""Arrays of the size of the weights that a step holds for each device, about."""


class StackedTraining(Lessons):
    """Trains what is pending in stacks, with ``trainer``'s artifact and its reading of samples.

    Raises:
        ArtifactError: the artifact's graphs cannot be read.
    """

    def __init__(self, artifact: TrainingArtifact, trainer: GraphTrainer) -> None:
        super().__init__(
            artifact, most=max(1, min(STACK, STACK_BYTES // (4 * _COPIES * max(artifact.layout.size, 1))))
        )
        self.stacks = 0
        """Stacks trained so far."""
        self._trainer = trainer
        self._session = StackedSession(artifact)
        self._slots = zero_slots(artifact)
        self._seeded = "seed" in artifact.manifest.hyper

    def learn(self, group: Sequence[Pending], base: Weights) -> Iterator[Lesson]:
        """See ``Lessons.learn``."""
        self.stacks += 1
        rows = self._trainer.batch(
            base, *Share.together([(one.samples.share, one.samples.training) for one in group])
        )
        starts = np.cumsum([0, *(one.samples.training for one in group)])
        plans = [one.plan() for one in group]
        generators = EpochGenerators([plan.seed for plan in plans])
        batches = [_batches(one, plan, generators) for one, plan in zip(group, plans, strict=True)]
        course = _Course(base, self._slots, len(group))
        for step in range(max(map(len, batches))):
            for members in _of_one_size(batches, step):
                given = _taken(rows, np.stack([starts[member] + batches[member][step] for member in members]))
                hyper = self._hyper([plans[member] for member in members], step)
                course.step(self._session, members, given, hyper, base)
        deltas = course.flat(self._layout) - join_flat(base, self._layout)
        return self.encoded(group, plans, course.results([len(own) for own in batches]), deltas)

    def _hyper(self, plans: Sequence[TrainingPlan], step: int) -> dict[str, float | Array]:
        plan = plans[0]
        hyper: dict[str, float | Array] = {
            "lr": plan.lr,
            "momentum": plan.momentum,
            "mu": plan.mu,
            "clip": plan.clip,
        }
        if self._seeded:
            hyper["seed"] = np.array([dropout_seed(own.seed, step) for own in plans], np.float32)
        return hyper


class _Course:
    """Where a stack of trainings is: tensors [devices, ...]."""

    def __init__(self, base: Weights, slots: Mapping[str, Array], count: int) -> None:
        self._weights = {name: np.repeat(tensor[None], count, axis=0) for name, tensor in base.items()}
        self._slots = {name: np.repeat(tensor[None], count, axis=0) for name, tensor in slots.items()}
        self._grad_norm = np.zeros(count, np.float64)

    def step(
        self,
        session: StackedSession,
        members: Sequence[int],
        batch: Batch,
        hyper: Mapping[str, float | Array],
        base: Weights,
    ) -> None:
        """Take a step on some of the devices."""
        if len(members) == len(self._grad_norm):
            result = session.step_all(self._weights, self._slots, batch, hyper, base)
            self._weights, self._slots = {**self._weights, **result.weights}, result.slots
            self._grad_norm += result.grad_norm
            return
        places = np.array(members)
        weights = {name: tensor[places] for name, tensor in self._weights.items()}
        slots = {name: tensor[places] for name, tensor in self._slots.items()}
        result = session.step_all(weights, slots, batch, hyper, base)
        for name, tensor in result.weights.items():
            self._weights[name][places] = tensor
        for name, tensor in result.slots.items():
            self._slots[name][places] = tensor
        self._grad_norm[places] += result.grad_norm

    def flat(self, layout: TensorLayout) -> Array:
        """Where each device is: float32[devices, n], in wire order."""
        count = len(self._grad_norm)
        return np.concatenate(
            [self._weights[tensor.name].reshape(count, -1) for tensor in layout.tensors], axis=1
        )

    def results(self, steps: Sequence[int]) -> Iterator[TrainingResult]:
        """What each device has learned in so many steps."""
        for member, count in enumerate(steps):
            weights = {name: tensor[member] for name, tensor in self._weights.items()}
            yield TrainingResult(weights, steps=count, sums={GRAD_NORM: float(self._grad_norm[member])})


def _batches(pending: Pending, plan: TrainingPlan, generators: EpochGenerators) -> list[NDArray[np.int64]]:
    """The rows of each step."""
    drawn = shuffled_batches(
        pending.samples.training,
        plan.batch_size,
        epochs=plan.epochs,
        seed=plan.seed,
        generator=generators,
    )
    return list(itertools.islice(drawn, pending.steps))


def _of_one_size(batches: Sequence[Sequence[NDArray[np.int64]]], step: int) -> Iterable[list[int]]:
    """Members that take this step, those with as many rows together."""
    sizes: dict[int, list[int]] = {}
    for member, own in enumerate(batches):
        if step < len(own):
            sizes.setdefault(len(own[step]), []).append(member)
    return sizes.values()


def _taken(rows: Batch, numbers: NDArray[np.int64]) -> Batch:
    """Rows by their numbers [devices, rows]."""
    return Batch(x=rows.x[numbers], y=rows.y[numbers], sample_weight=rows.sample_weight[numbers])
