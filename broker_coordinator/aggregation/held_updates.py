"""Held updates: what a rule such as a median looks at all at once, without a model for each in memory.

Decoded values are spilt to an unnamed temporary file, beyond 16 MiB to the disk, and read back as columns:
all updates' values of one stretch of the model. It is scratch: after a crash it is filled again from the
journal.
"""

import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.progress import Progress, unwatched
from fl_protocol.errors import StorageError

__all__ = ["COLUMN_ELEMENTS", "HeldUpdates"]

COLUMN_ELEMENTS = 1 << 20
"""float32 values that are read back at once, of all updates together: 4 MiB."""
_LONGEST = 1 << 16
_IN_MEMORY = 16 << 20
_WIDTH = 4


class HeldUpdates:
    """Updates of float32[size] each, in the order in which they were accepted; ``progress`` hears of each
    column that is read."""

    def __init__(self, size: int, progress: Progress = unwatched) -> None:
        self.size = size
        self._progress = progress
        self._weights: list[np.float32] = []
        self._written = 0
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def weights(self) -> NDArray[np.float32]:
        """float32[updates]: their weights as they were journalled."""
        return np.array(self._weights, np.float32)

    def put(self, values: NDArray[np.float32]) -> None:
        """Append one piece of the update that is arriving.

        Raises:
            StorageError: there is no room for it.
        """
        try:
            self._file.seek(self._written)
            self._file.write(np.ascontiguousarray(values, np.float32).tobytes())
        except OSError as error:
            raise _full(error) from None
        self._written += _WIDTH * len(values)

    def end(self, weight: np.float32) -> None:
        """The update has arrived whole."""
        self._weights.append(weight)

    def columns(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield ``(start, values)``, float32[updates, m]: elements ``[start, start + m)`` of each update.

        The stretches follow each other and depend on the number of updates and ``size`` alone. No value is
        a negative zero, so that equal values have equal bits. ``values`` is scratch, until the next is asked
        for. May be gone through again.

        Raises:
            StorageError: the temporary file cannot be read.
        """
        count = len(self)
        if not count:
            return
        longest = max(1, min(_LONGEST, COLUMN_ELEMENTS // count, self.size))
        room = np.empty(count * longest, np.float32)
        for start in range(0, self.size, longest):
            width = min(longest, self.size - start)
            values = room[: count * width].reshape(count, width)
            try:
                for row in range(count):
                    self._file.seek(_WIDTH * (row * self.size + start))
                    values[row] = np.frombuffer(self._file.read(_WIDTH * width), np.float32)
            except (OSError, ValueError) as error:
                raise _full(error) from None
            np.add(values, np.float32(0), out=values)
            yield start, values
            self._progress()


def _full(error: Exception) -> StorageError:
    return StorageError(
        f"the temporary file of held updates: {error}",
        hint=f"{tempfile.gettempdir()} needs room for one decoded update (4 bytes a parameter) times the"
        " buffer's size; TMPDIR names another folder",
    )
