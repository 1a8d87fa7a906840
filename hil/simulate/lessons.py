"""Lessons: what several devices are to learn is computed at once, when the first of it is wanted.

A virtual training ends when its virtual time is over, and nobody sees its result before. So what belongs to
those that are under way may be computed together. Who shares a lesson depends on the order in which the
trainings began, which the seed decides, and on nothing else.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edge_agent.jobs import TrainJob
from edge_agent.participation import training_seed
from edge_agent.sample_form import Array
from edge_agent.trainer import Samples, ShouldStop, Trainer, TrainingResult, Weights, planned_steps
from fl_protocol.codec import UpdateCodec, codec_for, codec_seed
from fl_protocol.errors import CodecError, LayoutError, LichenError
from fl_protocol.layout import TensorLayout
from fl_protocol.plan import TrainingPlan
from models.runtime import TrainingArtifact

if TYPE_CHECKING:
    from hil.simulate.training import DeviceSamples

__all__ = ["Learned", "Lesson", "Lessons", "Pending"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pending:
    """A training under way on one device: its job, the ``published`` content at which it begins, the samples
    of which those to train on are trained on, and the most steps that it takes."""

    job: TrainJob
    published: bytes
    samples: "DeviceSamples"
    most_steps: int

    def rows(self) -> tuple[Array, Array]:
        """``x`` and ``y`` of what it trains on."""
        return self.samples.share.first(self.samples.training)

    def plan(self) -> TrainingPlan:
        """Its own plan, as ``participate`` makes it of the task's."""
        job = self.job
        return replace(job.plan, seed=training_seed(job.device_seed, job.base), version=job.base.number)

    @property
    def steps(self) -> int:
        """Steps that it takes."""
        return min(planned_steps(self.job.plan, self.samples.training), self.most_steps)


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a training by ``plan`` gave; and, where the whole group could be encoded, the ``payload`` that its
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
"""What is the same for all of a group: where they begin, the version's number and plan, and the codec."""


class Lessons(ABC):
    """The trainings under way, and what became of those that were learned with others, up to ``most`` at
    once. Personal tensors are a device's own: with such a model each is trained alone.
    """

    def __init__(self, artifact: TrainingArtifact, *, most: int) -> None:
        self._layout = artifact.layout
        self._most = most
        self._alone = any(entry.role == "personal" for entry in artifact.manifest.parameters)
        self._kinds: dict[int, _Kind] = {}
        self._waiting: dict[_Kind, dict[int, Pending]] = {}
        self._done: dict[int, Lesson] = {}

    @abstractmethod
    def learn(self, group: Sequence[Pending], base: Weights) -> Iterator[Lesson]:
        """What each of a group of one kind learns from ``base``; use ``encoded``.

        Raises:
            LichenError: one of them cannot be trained.
        """

    def begin(self, device: int, pending: Pending) -> None:
        """A device trains, and may ask for the result."""
        self.forget(device)
        if pending.steps and not self._alone:
            job = pending.job
            kind = pending.published, job.base.number, job.plan, job.codec
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
            group = [waiting[member] for member in members]
            for member in members:
                self._kinds.pop(member, None)
                self._leave(kind, member)
            try:
                self._done.update(zip(members, self.learn(group, base()), strict=True))
            except LichenError:  # of one device, perhaps: each alone is told what is wrong with its samples
                return None
        return self._done.pop(device, None)

    def _leave(self, kind: _Kind, device: int) -> None:
        waiting = self._waiting[kind]
        del waiting[device]
        if not waiting:
            del self._waiting[kind]

    def encoded(
        self,
        group: Sequence[Pending],
        plans: Iterable[TrainingPlan],
        results: Iterable[TrainingResult],
        deltas: Array,
    ) -> Iterator[Lesson]:
        """Lessons of these results, and of the payloads that ``deltas``, float32[trainings, n], make; without
        payloads where they depend on more, or one cannot be made: ``participate`` finds out whose."""
        try:
            codec = codec_for(group[0].job.codec)
            if codec.feedback:  # what an earlier update left out is encoded too
                return map(Lesson, results, plans)
            seeds = [codec_seed(one.job.update_id) for one in group]
            payloads = codec.encode_all(deltas, self._layout, seeds)
        except (CodecError, LayoutError):
            return map(Lesson, results, plans)
        return map(Lesson, results, plans, seeds, deltas, payloads)


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
