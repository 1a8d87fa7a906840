"""Measure: how good each version is on rows that no device trains on, as a whole and for each group of them.

A mean hides whom a model serves badly. Rows belong to groups, which are users where it is known whose they
are, else classes; the worst group's accuracy is kept beside the mean.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.evaluation import Evaluation, HeldOut
from fl_protocol.errors import ConfigError
from models.runtime import Batch, TrainingArtifact, split_flat

__all__ = ["WORST_GROUP", "Measure"]

WORST_GROUP = "worst_group"
"""The metric of a version that is the accuracy on its worst group."""
_BATCH_ROWS = 512
_CLASSES = "softmax_cross_entropy"


class Measure:
    """Measures published weights on ``x`` and ``y`` [rows, ...]; ``users`` tells whose each row is.

    ``groups_of`` is ``user``, ``class``, or empty where rows have no groups; ``by_group`` is the accuracy on
    each group of the weights that were measured last.

    Raises:
        ConfigError: rows that do not fit the artifact, or not as many users as rows.
        RuntimeUnavailable: no runtime can run the artifact here.
    """

    def __init__(
        self,
        artifact: TrainingArtifact,
        x: NDArray[Any],
        y: NDArray[Any],
        *,
        users: NDArray[Any] | None,
        folder: Path,
        runtimes: Sequence[str],
    ) -> None:
        path = folder / "held_out.npz"
        with path.open("wb") as stream:
            np.savez(stream, x=x, y=y)
        self._whole = HeldOut(artifact, path, runtimes=runtimes)  # which checks the rows
        if users is not None and len(users) != len(x):
            raise ConfigError(
                f"{len(x)} rows to evaluate with, and {len(users)} users", hint="tell whose each row is"
            )
        labels = artifact.manifest.loss == _CLASSES and y.ndim == 1
        self.groups_of = "user" if users is not None else "class" if labels else ""
        self.by_group: Mapping[str, float] = {}
        self._session = self._whole.session
        self._layout = artifact.layout
        dtypes = {entry.name: entry.dtype for entry in artifact.manifest.inputs}
        x, y = x.astype(dtypes.get("x", x.dtype)), y.astype(dtypes.get("y", y.dtype))
        self._batches = list(_batches(x, y, y if users is None else users)) if self.groups_of else []

    def evaluate(self, weights: NDArray[np.float32]) -> Evaluation:
        """Measure published weights, float32[n]."""
        if not self._batches:
            return self._whole.evaluate(weights)
        named = split_flat(weights, self._layout)
        whole: dict[str, float] = {}
        correct: dict[str, float] = {}
        rows: dict[str, int] = {}
        for group, batch in self._batches:
            sums = self._session.evaluate(named, batch)
            for name, value in sums.items():
                whole[name] = whole.get(name, 0.0) + value
            correct[group] = correct.get(group, 0.0) + sums.get("correct", 0.0)
            rows[group] = rows.get(group, 0) + len(batch.x)
        examples = sum(rows.values())
        if "correct" in whole:
            self.by_group = {group: correct[group] / rows[group] for group in rows}
            whole[WORST_GROUP] = min(self.by_group.values()) * examples
        return Evaluation(source="coordinator", devices=0, examples=examples, sums=whole)


def _batches(x: NDArray[Any], y: NDArray[Any], groups: NDArray[Any]) -> list[tuple[str, Batch]]:
    """Rows of one group each, at most ``_BATCH_ROWS`` together."""
    batches = []
    ordered = np.sort(groups)
    # Not np.unique, which loads a package of masked arrays.
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    for group in ordered[first]:
        own = np.flatnonzero(groups == group)
        for start in range(0, len(own), _BATCH_ROWS):
            rows = own[start : start + _BATCH_ROWS]
            batches.append((str(group), Batch.of(x[rows], y[rows])))
    return batches
