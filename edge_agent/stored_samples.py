"""A view of a sample store's training or held-out part."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from edge_agent.sample_form import Array, SampleForm
from edge_agent.trainer import shuffled_batches

__all__ = ["CACHED_BYTES", "ReadRows", "StoredSamples"]

CACHED_BYTES = 32 << 20
"""A view up to this size is read once and kept; a larger one is read batch by batch."""
_ROWS_AT_ONCE = 500

ReadRows: TypeAlias = Callable[[Sequence[int]], list[tuple[int, bytes, bytes]]]
"""Maps sequence numbers (at most 500) to ``(sequence, x, y)``, in any order, without those that are gone."""


class StoredSamples:
    """Samples that were in the store when the view was made; rows evicted since are left out."""

    def __init__(
        self, read: ReadRows, *, form: SampleForm | None, sequences: Sequence[int], size: int
    ) -> None:
        self._read = read
        self._form = form or SampleForm(x_dtype="float32", x_shape=(0,), y_dtype="int32", y_shape=(0,))
        self._sequences = sequences
        self._size = size
        self._keep = size <= CACHED_BYTES
        self._kept: tuple[Array, Array] | None = None

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def newest(self) -> int:
        """The sequence number of the newest sample; 0 where there is none."""
        return self._sequences[-1] if self._sequences else 0

    def until(self, sequence: int) -> "StoredSamples":
        """The samples of this view up to a sequence number: the view as it was before later ones came."""
        return StoredSamples(
            self._read,
            form=self._form,
            sequences=self._sequences[: bisect.bisect_right(self._sequences, sequence)],
            size=self._size,
        )

    def batches(self, batch_size: int, *, epochs: int = 1, seed: int = 0) -> Iterator[tuple[Array, Array]]:
        """See ``Samples.batches``."""
        kept = self.all() if self._keep else None
        count = len(kept[0]) if kept is not None else len(self)
        for rows in shuffled_batches(count, batch_size, epochs=epochs, seed=seed):
            if kept is not None:
                yield kept[0][rows], kept[1][rows]
            else:
                x, y = self._rows([self._sequences[row] for row in rows])
                if len(x):
                    yield x, y

    def all(self) -> tuple[Array, Array]:
        """See ``Samples.all``; of a large store this takes as much memory as the store has bytes."""
        if self._kept is not None:
            return self._kept
        everything = self._rows(self._sequences)
        if self._keep:
            self._kept = everything
        return everything

    def _rows(self, sequences: Sequence[int]) -> tuple[Array, Array]:
        x_rows: list[bytes] = []
        y_rows: list[bytes] = []
        for start in range(0, len(sequences), _ROWS_AT_ONCE):
            wanted = sequences[start : start + _ROWS_AT_ONCE]
            found = {sequence: (x, y) for sequence, x, y in self._read(wanted)}
            for sequence in wanted:
                if sequence in found:
                    x_rows.append(found[sequence][0])
                    y_rows.append(found[sequence][1])
        x, y = self._form.stack_x(x_rows), self._form.stack_y(y_rows)
        for array in (x, y):
            array.setflags(write=False)
        return x, y
