"""A session whose graphs take a fixed number of rows: shorter batches are padded with rows of weight 0.

Sums are over weighted rows and row by row independent, so a padded row changes nothing, and evaluation
and inference of longer batches go in pieces. A training step does not: it is one step or none.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from fl_protocol.errors import ArtifactError
from models.runtime.session import Array, Batch, Session, StepResult, padded

__all__ = ["StaticBatchSession"]


class StaticBatchSession:
    """A session that takes any number of rows, on top of one that takes exactly ``rows``."""

    def __init__(self, session: Session, *, rows: int) -> None:
        self._session = session
        self._rows = rows

    @property
    def rows(self) -> int:
        """Rows of a training batch at most."""
        return self._rows

    @property
    def name(self) -> str:
        """The runtime's name."""
        return self._session.name

    def step(
        self,
        weights: Mapping[str, Array],
        slots: Mapping[str, Array],
        batch: Batch,
        hyper: Mapping[str, float],
        anchor: Mapping[str, Array],
        *,
        correction: Mapping[str, Array] | None = None,
    ) -> StepResult:
        """See ``Session.step``.

        Raises:
            ArtifactError: more rows than the graph takes.
        """
        if len(batch.x) > self._rows:
            raise ArtifactError(
                f"a training batch of {len(batch.x)} rows, the {self.name} graphs take {self._rows} at most",
                hint=f"train with a batch size of at most {self._rows}, or build with a larger --batch",
            )
        return self._session.step(
            weights, slots, batch.padded(self._rows), hyper, anchor, correction=correction
        )

    def evaluate(self, weights: Mapping[str, Array], batch: Batch) -> dict[str, float]:
        """See ``Session.evaluate``."""
        total: dict[str, float] = {}
        for rows in self._pieces(len(batch.x)):
            piece = Batch(x=batch.x[rows], y=batch.y[rows], sample_weight=batch.sample_weight[rows])
            for key, value in self._session.evaluate(weights, piece.padded(self._rows)).items():
                total[key] = total.get(key, 0.0) + value
        return total

    def infer(self, weights: Mapping[str, Array], x: Array) -> Array:
        """See ``Session.infer``."""
        outputs = [
            self._session.infer(weights, padded(x[rows], self._rows))[: len(x[rows])]
            for rows in self._pieces(len(x))
        ]
        return np.concatenate(outputs)

    def _pieces(self, count: int) -> Iterator[slice]:
        # An empty batch is one piece of padding alone, so that its sums are there, and 0.
        for start in range(0, max(count, 1), self._rows):
            yield slice(start, min(start + self._rows, count))
