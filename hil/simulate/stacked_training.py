"""Stacked training: what several devices are to learn is computed at once, when the first of it is wanted.

A virtual training ends when its virtual time is over, and nobody sees its result before. So those that are
under way may be done together, in a stack of arrays with a device axis: what is learned is the same to the
rounding of float32, and NumPy is called once for all of them. Who shares a stack depends on the order in
which the trainings began, which the seed decides, and on nothing else.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_agent.graph_trainer import GRAD_NORM, GraphTrainer, dropout_seed
from edge_agent.sample_form import Array
from edge_agent.trainer import (
    Samples,
    ShouldStop,
    Trainer,
    TrainingResult,
    Weights,
    planned_steps,
    shuffled_batches,
)
from fl_protocol.codec import UpdateCodec, codec_for
from fl_protocol.errors import CodecError, LayoutError, LichenError
from fl_protocol.layout import TensorLayout
from fl_protocol.plan import TrainingPlan
from hil.simulate.share import Share
from models.runtime import Batch, TrainingArtifact, join_flat, zero_slots
from models.runtime.stacked_session import StackedSession

__all__ = ["STACK", "Learned", "Lesson", "Pending", "StackedTraining"]

STACK = 50
"""Devices of one stack: enough that the calls are paid once, few enough that all stays in the cache."""
STACK_BYTES = 1 << 26
"""What the weights, gradients and slots of a stack may take, about."""
_COPIES = 6
"""Arrays of the size of the weights that a step holds for each device, about."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pending:
    """A training under way on one device: it trains on the first ``examples`` rows of its
    ``share``; ``plan`` is its own, with its
    seed and version, made of the ``task``'s; it takes at most ``most_steps`` steps. It begins at the
    published content ``base``, and its update is to be encoded by ``codec`` with the codec seed ``seed``."""

    base: bytes
    task: TrainingPlan
    plan: TrainingPlan
    codec: str
    seed: bytes
    share: Share
    examples: int
    most_steps: int

    @property
    def steps(self) -> int:
        """Steps that it takes."""
        return min(planned_steps(self.plan, self.examples), self.most_steps)

    def batches(self) -> list[NDArray[np.int64]]:
        """The rows of each step."""
        plan = self.plan
        drawn = shuffled_batches(self.examples, plan.batch_size, epochs=plan.epochs, seed=plan.seed)
        return list(itertools.islice(drawn, self.steps))


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a training by ``plan`` gave; and, where the whole stack could be encoded, the ``payload`` that its
    ``delta`` makes with the codec seed ``seed``."""

    result: TrainingResult
    plan: TrainingPlan
    seed: bytes = b""
    delta: Array | None = None
    payload: bytes = b""

    def encode(self, codec: UpdateCodec, delta: Array, layout: TensorLayout, seed: bytes) -> bytes:
        """See ``edge_agent.participation.Encode``: known for the very delta that was learned."""
        if self.delta is not None and seed == self.seed and np.array_equal(delta, self.delta):
            return self.payload
        return codec.encode(delta, layout, seed)


_Kind: TypeAlias = tuple[bytes, int, TrainingPlan, str]
"""What is the same for all of a stack: where they begin, the version's number and plan, and the codec."""


class StackedTraining:
    """Trains what is pending in stacks, with ``trainer``'s artifact and its reading of samples.

    Raises:
        ArtifactError: the artifact's graphs cannot be read.
    """

    def __init__(self, artifact: TrainingArtifact, trainer: GraphTrainer) -> None:
        self.stacks = 0
        """Stacks trained so far."""
        self._trainer = trainer
        self._layout = artifact.layout
        self._session = StackedSession(artifact)
        self._slots = zero_slots(artifact)
        self._seeded = "seed" in artifact.manifest.hyper
        self._most = max(1, min(STACK, STACK_BYTES // (4 * _COPIES * max(artifact.layout.size, 1))))
        self._personal = any(entry.role == "personal" for entry in artifact.manifest.parameters)
        self._kinds: dict[int, _Kind] = {}
        self._waiting: dict[_Kind, dict[int, Pending]] = {}
        self._done: dict[int, Lesson] = {}

    def begin(self, device: int, pending: Pending) -> None:
        """A device trains, and may ask for the result."""
        self.forget(device)
        # Personal tensors are a device's own: it does not begin where the others do.
        if pending.steps and not self._personal:
            kind = pending.base, pending.plan.version, pending.task, pending.codec
            self._kinds[device] = kind
            self._waiting.setdefault(kind, {})[device] = pending

    def forget(self, device: int) -> None:
        """A device will not ask for what it began."""
        self._done.pop(device, None)
        kind = self._kinds.pop(device, None)
        if kind is not None:
            self._leave(kind, device)

    def result(self, device: int, base: Callable[[], Weights]) -> Lesson | None:
        """What a device has learned, and, the first time, what those that began with it will have; ``base``
        gives the weights where they began. None where it must be trained alone."""
        kind = self._kinds.pop(device, None)
        if kind is not None:
            waiting = self._waiting[kind]
            others = itertools.islice((other for other in waiting if other != device), self._most - 1)
            members = [device, *others]
            stack = [waiting[member] for member in members]
            for member in members:
                self._kinds.pop(member, None)
                self._leave(kind, member)
            try:
                self._done.update(zip(members, self._learned(stack, base()), strict=True))
            except LichenError:  # of one device, perhaps: each alone is told what is wrong with its samples
                return None
        return self._done.pop(device, None)

    def _leave(self, kind: _Kind, device: int) -> None:
        waiting = self._waiting[kind]
        del waiting[device]
        if not waiting:
            del self._waiting[kind]

    def _learned(self, stack: Sequence[Pending], base: Weights) -> Iterator[Lesson]:
        self.stacks += 1
        xs, ys = zip(*(one.share.first(one.examples) for one in stack), strict=True)
        rows = self._trainer.batch(base, np.concatenate(xs), np.concatenate(ys))
        starts = np.cumsum([0, *(one.examples for one in stack)])
        batches = [one.batches() for one in stack]
        course = _Course(base, self._slots, len(stack))
        for step in range(max(map(len, batches))):
            for members in _of_one_size(batches, step):
                given = _taken(rows, np.stack([starts[member] + batches[member][step] for member in members]))
                hyper = self._hyper([stack[member].plan for member in members], step)
                course.step(self._session, members, given, hyper, base)
        return self._encoded(stack, course, base, [len(own) for own in batches])

    def _encoded(
        self, stack: Sequence[Pending], course: "_Course", base: Weights, steps: Sequence[int]
    ) -> Iterator[Lesson]:
        results = course.results(steps)
        plans = [one.plan for one in stack]
        try:
            codec = codec_for(stack[0].codec)
            deltas = course.flat(self._layout) - join_flat(base, self._layout)
            seeds = [one.seed for one in stack]
            payloads = codec.encode_all(deltas, self._layout, seeds)
        except (CodecError, LayoutError):  # one that diverged, perhaps: ``participate`` finds out whose
            return map(Lesson, results, plans)
        return map(Lesson, results, plans, seeds, deltas, payloads)

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


class Learned:
    """The trainer of one training whose ``lesson`` is known, for the samples ``of`` it and its plan; whatever
    else is asked of it, ``trainer`` does."""

    def __init__(self, trainer: Trainer, lesson: Lesson, *, of: Samples) -> None:
        self._trainer = trainer
        self._lesson = lesson
        self._samples = of

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """See ``Trainer.train``."""
        if samples is self._samples and plan == self._lesson.plan:
            return self._lesson.result
        return self._trainer.train(weights, samples, plan, should_stop)

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """See ``Trainer.evaluate``."""
        return self._trainer.evaluate(weights, samples)


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
