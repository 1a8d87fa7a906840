"""A recorded training: what went into each step and what came out, so that a runtime can retrace it.

Holds nothing of PyTorch, which recorded it: the process that retraces need not have that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.runtime import TrainingArtifact, split_flat, zero_slots
from models.runtime.session import STEP_COUNTER, Batch, Session

__all__ = ["Deviation", "Recording"]

_LEAST = 1e-12
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """How far a runtime came from a recording: ``loss`` and ``weights`` are the largest differences of a mean
    loss and of a weight over all steps taken in a row, ``one_loss`` and ``one_weights`` of single steps, each
    from the recorded state before it."""

    loss: float
    weights: float
    one_loss: float
    one_weights: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Steps in a row with constant ``hyper``.

    ``losses[i]`` is the mean loss that step ``i`` saw, ``states[i]`` and ``slots[i]`` are what it began with;
    ``states`` has one entry more, the end.
    """

    hyper: Mapping[str, float]
    batches: Sequence[Batch]
    losses: Sequence[float]
    states: Sequence[Tensors]
    slots: Sequence[Tensors]

    def save(self, path: Path) -> None:
        """Write everything to one ``.npz`` file."""
        arrays: dict[str, Any] = {f"hyper.{key}": np.float64(value) for key, value in self.hyper.items()}
        arrays["losses"] = np.array(self.losses, np.float64)
        for step, batch in enumerate(self.batches):
            arrays |= {f"{step}.batch.{key}": getattr(batch, key) for key in ("x", "y", "sample_weight")}
        for kind, places in (("state", self.states), ("slots", self.slots)):
            for step, tensors in enumerate(places):
                arrays |= {f"{step}.{kind}.{name}": array for name, array in tensors.items()}
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            count = len(arrays["losses"])
            held: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
            hyper: dict[str, float] = {}
            for name in arrays.files:
                step, _, rest = name.partition(".")
                kind, _, key = rest.partition(".")
                if step == "hyper":
                    hyper[rest] = float(arrays[name])
                elif kind:
                    held.setdefault((kind, step), {})[key] = arrays[name]
            return cls(
                hyper=hyper,
                batches=[Batch(**held["batch", str(step)]) for step in range(count)],
                losses=arrays["losses"].tolist(),
                states=[held["state", str(step)] for step in range(count + 1)],
                slots=[held.get(("slots", str(step)), {}) for step in range(count)],
            )

    def retraced_by(self, session: Session, artifact: TrainingArtifact) -> Deviation:
        """Take the same steps from the artifact's initial weights, and each again from the recorded state."""
        anchor: Tensors = split_flat(artifact.initial_weights(), artifact.layout)
        weights, slots = anchor, zero_slots(artifact)
        loss = moved = one_loss = one_moved = 0.0
        for step, batch in enumerate(self.batches):
            result = session.step(weights, slots, batch, self.hyper, anchor)
            weights, slots = result.weights, result.slots
            loss = max(loss, abs(_mean(result.sums) - self.losses[step]))
            moved = max(moved, self._distance(step + 1, weights))
            one = session.step(
                {**anchor, **self.states[step]}, self._slots(step, artifact), batch, self.hyper, anchor
            )
            one_loss = max(one_loss, abs(_mean(one.sums) - self.losses[step]))
            one_moved = max(one_moved, self._distance(step + 1, one.weights))
        return Deviation(loss=loss, weights=moved, one_loss=one_loss, one_weights=one_moved)

    def distance_to(self, other: "Recording") -> Deviation:
        """The same of another recording of the same steps; single steps are not compared."""
        return Deviation(
            loss=max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True)),
            weights=max(self._distance(step, state) for step, state in enumerate(other.states)),
            one_loss=0.0,
            one_weights=0.0,
        )

    def _distance(self, step: int, weights: Tensors) -> float:
        state = self.states[step]
        return max(float(np.abs(weights[name] - array).max()) for name, array in state.items())

    def _slots(self, step: int, artifact: TrainingArtifact) -> dict[str, NDArray[Any]]:
        slots: dict[str, NDArray[Any]] = {**zero_slots(artifact), **self.slots[step]}
        if STEP_COUNTER in slots:
            slots[STEP_COUNTER] = np.array(step, np.float32)
        return slots


def _mean(sums: Mapping[str, float]) -> float:
    return sums["loss"] / max(sums["weight"], _LEAST)
