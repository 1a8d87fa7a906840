"""The default trainer: runs an artifact's step graph in whatever runtime its session was opened."""

import math
from collections.abc import Mapping

import numpy as np

from edge_agent.sample_form import Array
from edge_agent.trainer import Samples, ShouldStop, TrainingResult, Weights
from fl_protocol.artifact import Input
from fl_protocol.errors import LayoutError
from fl_protocol.plan import TrainingPlan
from models.runtime import Batch, Session, TrainingArtifact, zero_slots

__all__ = ["GraphTrainer"]

_EVALUATION_ROWS = 256


class GraphTrainer:
    """Trains and evaluates through a session; the optimizer's slots start at zero in each training."""

    def __init__(self, artifact: TrainingArtifact, session: Session) -> None:
        self._artifact = artifact
        self._session = session
        self._inputs = {entry.name: entry for entry in artifact.manifest.inputs}

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """See ``Trainer.train``; FedProx pulls to ``weights``.

        Raises:
            LayoutError: samples that are not the artifact's input.
            ArtifactError: the runtime fails.
        """
        hyper = {"lr": plan.lr, "momentum": plan.momentum, "mu": plan.mu, "clip": plan.clip}
        current: Weights = weights
        slots = zero_slots(self._artifact)
        steps = 0
        for x, y in samples.batches(plan.batch_size, epochs=plan.epochs, seed=plan.seed):
            if should_stop() or (plan.max_steps and steps >= plan.max_steps):
                break
            result = self._session.step(current, slots, self._batch(x, y), hyper, weights)
            current, slots = result.weights, result.slots
            steps += 1
        return TrainingResult(current, steps=steps)

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """The artifact's sums (``loss`` and its metrics) over ``samples``.

        Raises:
            LayoutError: samples that are not the artifact's input.
            ArtifactError: the runtime fails.
        """
        totals: dict[str, float] = {}
        for x, y in samples.batches(_EVALUATION_ROWS):
            sums = self._session.evaluate(weights, self._batch(x, y))
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
        totals.pop("weight", None)  # all rows weigh 1: the agent counts them itself
        return totals

    def _batch(self, x: Array, y: Array) -> Batch:
        return Batch.of(self._fitted("x", x), self._fitted("y", y))

    def _fitted(self, name: str, rows: Array) -> Array:
        """Rows in the dtype and shape of the graph's input; an image may be stored flat, or the reverse."""
        entry = self._inputs.get(name) or Input(name=name, shape=(-1, *rows.shape[1:]), dtype=rows.dtype.name)
        wanted, found = entry.shape[1:], rows.shape[1:]
        if -1 not in wanted and math.prod(wanted) != math.prod(found):
            raise LayoutError(
                f"samples have {name} of shape {list(found)}, the model takes {list(wanted)}",
                hint="add samples of that shape, or train an artifact built for these",
            )
        shaped = rows if -1 in wanted else rows.reshape(len(rows), *wanted)
        return np.ascontiguousarray(shaped, dtype=entry.dtype)
