"""A device's share of a data set: its rows by number, taken when they are needed and forgotten again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.sample_form import Array
from edge_agent.trainer import ArraySamples

__all__ = ["Share", "ShareSamples"]


@dataclass(frozen=True, slots=True)
class Share:
    """The ``rows`` of ``whole_x`` and ``whole_y``, in that order; all of them where it is None.

    A hundred thousand devices that draw from the same samples hold numbers, and the samples are there once.
    It unpacks into ``x`` and ``y``, as the pair of arrays that it stands for.
    """

    whole_x: Array
    whole_y: Array
    rows: Array | None = None

    @classmethod
    def of(cls, whole_x: Array, whole_y: Array, rows: NDArray[np.integer]) -> "Share":
        """The share with these rows, each counted from 0, in the smallest numbers that can count them."""
        return cls(whole_x, whole_y, rows.astype(np.min_scalar_type(max(len(whole_x) - 1, 0))))

    def __len__(self) -> int:
        return len(self.whole_x if self.rows is None else self.rows)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.x, self.y))

    @property
    def x(self) -> Array:
        """Its rows of ``whole_x``."""
        return self.whole_x if self.rows is None else self.whole_x[self.rows]

    @property
    def y(self) -> Array:
        """Its rows of ``whole_y``."""
        return self.whole_y if self.rows is None else self.whole_y[self.rows]

    def has_rows_of(self, other: "Share") -> bool:
        """Whether both are shares of the same samples."""
        return self.whole_x is other.whole_x and self.whole_y is other.whole_y

    def first(self, count: int) -> tuple[Array, Array]:
        """``x`` and ``y`` of its first rows."""
        if self.rows is None:
            return self.whole_x[:count], self.whole_y[:count]
        rows = self.rows[:count]
        return self.whole_x[rows], self.whole_y[rows]

    @staticmethod
    def together(shares: "Sequence[tuple[Share, int]]") -> tuple[Array, Array]:
        """``x`` and ``y`` of the first rows of several shares, one behind the other."""
        first = shares[0][0]
        rows = [share.rows[:count] for share, count in shares if share.rows is not None]
        if len(rows) == len(shares) and all(first.has_rows_of(share) for share, _ in shares):
            numbers = np.concatenate(rows)
            return first.whole_x[numbers], first.whole_y[numbers]
        xs, ys = zip(*(share.first(count) for share, count in shares), strict=True)
        return np.concatenate(xs), np.concatenate(ys)

    def in_order(self, order: NDArray[np.integer]) -> "Share":
        """The same rows, as ``order`` names them."""
        if self.rows is None:
            return Share(self.whole_x[order], self.whole_y[order])
        return replace(self, rows=self.rows[order])


class ShareSamples:
    """Rows ``[start, stop)`` of a share as a trainer takes them, see ``edge_agent.trainer.Samples``: nothing
    is copied before they are asked for."""

    __slots__ = ("_share", "_start", "_stop")

    def __init__(self, share: Share, start: int, stop: int) -> None:
        self._share, self._start, self._stop = share, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def batches(self, batch_size: int, *, epochs: int = 1, seed: int = 0) -> Iterator[tuple[Array, Array]]:
        """See ``Samples.batches``."""
        return self._taken().batches(batch_size, epochs=epochs, seed=seed)

    def all(self) -> tuple[Array, Array]:
        """See ``Samples.all``."""
        return self._taken().all()

    def _taken(self) -> ArraySamples:
        x, y = self._share.first(self._stop)
        return ArraySamples(x[self._start :], y[self._start :])
