"""Trained ahead: each device is trained by itself, before its time is over, to be encoded with others.

Of a small model a call of the codec costs more than the numbers: it is paid once for several devices.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from edge_agent.graph_trainer import GraphTrainer
from edge_agent.trainer import ArraySamples, TrainingResult, Weights
from fl_protocol.plan import TrainingPlan
from hil.simulate.epoch_generators import EpochGenerators
from hil.simulate.lessons import Lesson, Lessons, Pending
from models.runtime import TrainingArtifact, join_flat

__all__ = ["TrainedAhead"]

GROUP = 50
"""Devices that are encoded together, at most: one whose power fails was trained for nothing."""
GROUP_BYTES = 1 << 20
"""What the weights and deltas of a group may take: then encoding them together is cheaper."""
_COPIES = 2


class TrainedAhead(Lessons):
    """Trains what is pending with ``trainer``, one after the other; the payloads are made together."""

    def __init__(self, artifact: TrainingArtifact, trainer: GraphTrainer) -> None:
        super().__init__(artifact, most=_most(artifact))
        self._trainer = trainer

    @classmethod
    def suits(cls, artifact: TrainingArtifact) -> bool:
        """Whether the model is so small that several updates are encoded together."""
        return _most(artifact) > 1

    def learn(self, group: Sequence[Pending], base: Weights) -> Iterator[Lesson]:
        """See ``Lessons.learn``."""
        plans = [one.plan() for one in group]
        generators = EpochGenerators([plan.seed for plan in plans])
        results = [self._trained(one, plan, base, generators) for one, plan in zip(group, plans, strict=True)]
        reached = np.stack([join_flat(result.weights, self._layout) for result in results])
        return self.encoded(group, plans, results, reached - join_flat(base, self._layout))

    def _trained(
        self, pending: Pending, plan: TrainingPlan, base: Weights, generators: EpochGenerators
    ) -> TrainingResult:
        steps = itertools.count()
        samples = ArraySamples(*pending.rows(), generator=generators)
        return self._trainer.train(base, samples, plan, lambda: next(steps) >= pending.most_steps)


def _most(artifact: TrainingArtifact) -> int:
    return min(GROUP, GROUP_BYTES // (4 * _COPIES * max(artifact.layout.size, 1)))
