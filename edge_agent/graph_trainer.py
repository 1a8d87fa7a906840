"""The default trainer: runs an artifact's step graph in whatever runtime its session was opened."""

import hashlib
import itertools
from collections.abc import Mapping

import numpy as np

from edge_agent.checkpoint import Checkpoint
from edge_agent.sample_form import Array, shaped
from edge_agent.trainer import Samples, ShouldStop, TrainingResult, Weights
from fl_protocol.artifact import Input
from fl_protocol.errors import LayoutError
from fl_protocol.plan import TrainingPlan
from models.runtime import Batch, Session, TrainingArtifact, zero_slots

__all__ = ["GRAD_NORM", "GraphTrainer", "dropout_seed"]

_EVALUATION_ROWS = 256
_SEEDS = 1 << 22
_WEIGHT, _SLOT = "weight/", "slot/"
"""How the tensors of a checkpoint are named."""
GRAD_NORM = "grad_norm"
"""The sum over the steps of the gradient's global norm: in a result's sums, and in a checkpoint."""


class GraphTrainer:
    """Trains and evaluates through a session; the optimizer's slots start at zero in each training.

    ``checkpoint`` is where a long training leaves its state (see ``edge_agent.checkpoint``).
    """

    def __init__(self, artifact: TrainingArtifact, session: Session) -> None:
        self.checkpoint: Checkpoint | None = None
        self._artifact = artifact
        self._session = session
        self._inputs = {entry.name: entry for entry in artifact.manifest.inputs}
        self._seeded = "seed" in artifact.manifest.hyper
        self._classes: int | None = None

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """See ``Trainer.train``; FedProx pulls to ``weights``. The result's sums hold ``grad_norm``, the
        global norm of the loss's gradient before clipping.

        Raises:
            LayoutError: samples that are not the artifact's input, or of a class that it does not know.
            ArtifactError: the runtime fails.
        """
        hyper = {"lr": plan.lr, "momentum": plan.momentum, "mu": plan.mu, "clip": plan.clip}
        course = _Course(weights, zero_slots(self._artifact))
        if self.checkpoint is not None and (saved := self.checkpoint.resume()):
            course = _Course.restored(*saved)
        batches = samples.batches(plan.batch_size, epochs=plan.epochs, seed=plan.seed)
        for x, y in itertools.islice(batches, course.steps, None):
            if should_stop() or (plan.max_steps and course.steps >= plan.max_steps):
                break
            if self._seeded:
                hyper["seed"] = float(dropout_seed(plan.seed, course.steps))
            result = self._session.step(
                course.weights, course.slots, self.batch(weights, x, y), hyper, weights
            )
            course.weights, course.slots = {**course.weights, **result.weights}, result.slots
            course.grad_norm += result.grad_norm
            course.steps += 1
            if self.checkpoint is not None:
                self.checkpoint.offer(course.steps, course.tensors)
        return TrainingResult(course.weights, steps=course.steps, sums={GRAD_NORM: course.grad_norm})

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """The artifact's sums (``loss`` and its metrics) over ``samples``.

        Raises:
            LayoutError: samples that are not the artifact's input, or of a class that it does not know.
            ArtifactError: the runtime fails.
        """
        totals: dict[str, float] = {}
        for x, y in samples.batches(_EVALUATION_ROWS):
            sums = self._session.evaluate(weights, self.batch(weights, x, y))
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
        totals.pop("weight", None)  # all rows weigh 1: the agent counts them itself
        return totals

    def batch(self, weights: Weights, x: Array, y: Array) -> Batch:
        """Rows as the graphs take them, each of weight 1.

        Raises:
            LayoutError: rows that are not the artifact's input, or of a class that it does not know.
        """
        batch = Batch.of(self._fitted("x", x), self._fitted("y", y))
        if batch.y.dtype.kind == "i" and len(batch.y):
            self._check_classes(weights, batch)
        return batch

    def _check_classes(self, weights: Weights, batch: Batch) -> None:
        # To a graph, a class that is none has no logit: its rows would seem to have no loss at all.
        if self._classes is None:
            self._classes = int(self._session.infer(weights, batch.x[:1]).shape[-1])
        least, most = (int(ends.reduce(batch.y, axis=None)) for ends in (np.minimum, np.maximum))
        if least < 0 or most >= self._classes:
            raise LayoutError(
                f"samples have classes that the model has not: it tells {self._classes} apart",
                hint=f"number the classes from 0 to {self._classes - 1}; these go from {least} to {most}",
            )

    def _fitted(self, name: str, rows: Array) -> Array:
        """Rows in the dtype and shape of the graph's input; an image may be stored flat, or the reverse."""
        entry = self._inputs.get(name) or Input(name=name, shape=(-1, *rows.shape[1:]), dtype=rows.dtype.name)
        wanted = entry.shape[1:]
        fitting = shaped(rows, wanted)
        if fitting is None:
            raise LayoutError(
                f"samples have {name} of shape {list(rows.shape[1:])}, the model takes {list(wanted)}",
                hint="add samples of that shape, axes in that order, or train an artifact built for these",
            )
        return np.ascontiguousarray(fitting, dtype=entry.dtype)


class _Course:
    """Where a training is: all that its next step depends on."""

    def __init__(self, weights: Weights, slots: dict[str, Array], *, steps: int = 0, grad_norm: float = 0.0):
        self.weights = weights
        self.slots = slots
        self.steps = steps
        self.grad_norm = grad_norm

    @classmethod
    def restored(cls, steps: int, tensors: Mapping[str, Array]) -> "_Course":
        """The course as ``tensors`` gave it after so many steps."""
        return cls(
            {key.removeprefix(_WEIGHT): tensor for key, tensor in tensors.items() if key.startswith(_WEIGHT)},
            {key.removeprefix(_SLOT): tensor for key, tensor in tensors.items() if key.startswith(_SLOT)},
            steps=steps,
            grad_norm=float(tensors[GRAD_NORM]),
        )

    def tensors(self) -> Mapping[str, Array]:
        """All of it as named tensors."""
        named = {f"{_WEIGHT}{name}": tensor for name, tensor in self.weights.items()}
        named |= {f"{_SLOT}{name}": tensor for name, tensor in self.slots.items()}
        return {**named, GRAD_NORM: np.array(self.grad_norm, np.float64)}


def dropout_seed(training_seed: int, step: int) -> int:
    """The seed of one step's dropout masks, in [0, 2**22): a whole number that float32 holds exactly."""
    drawn = hashlib.sha256(f"dropout {training_seed} {step}".encode()).digest()
    return int.from_bytes(drawn[:4], "big") % _SEEDS
