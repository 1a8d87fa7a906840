"""Checkpoints: what a long training leaves on the disk, so that a power cut costs minutes and not hours.

One file, written now and then while a training runs (flash memory wears out: a short training writes
nothing), and as a training is cancelled. It is bound to all that the training depends on; the same training
goes on from it, any other discards it. A trainer of the user's takes part by having an attribute
``checkpoint``: see ``Checkpoint``.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgpack

from edge_agent.tensor_record import Array, pack_record, unpack_record
from fl_io.disk import DISK, Disk, write_file
from fl_protocol.clock import Clock
from fl_protocol.errors import StorageError

__all__ = ["CHECKPOINT_EVERY_S", "Capture", "Checkpoint", "Saved", "binding_of", "read_checkpoint"]

CHECKPOINT_EVERY_S = 120.0
LITTLE_WORK_S = 10.0
"""A cancelled training that did no more since its start, or since it last wrote, is not worth a write."""
_WHAT = "the checkpoint"
_log = logging.getLogger(__name__)

Capture: TypeAlias = Callable[[], Mapping[str, Array]]
"""Gives the tensors from which a training can go on as if it had never stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint as it was written: after ``steps`` steps, on ``samples`` samples, the newest of which has
    the number ``newest`` in the store."""

    binding: bytes
    steps: int
    samples: int
    newest: int
    tensors: Mapping[str, Array]


class Checkpoint:
    """Where one training leaves its state.

    A trainer that has an attribute ``checkpoint`` finds one there when ``train`` is called (``None`` where it
    runs without). It asks ``resume`` once, before its first step, and calls ``offer`` after each step.
    ``every_s`` seconds pass between two writes; 0 writes after each step. A disk that refuses ends the
    checkpoints, not the training.
    """

    def __init__(
        self,
        path: Path,
        *,
        binding: bytes,
        samples: int,
        newest: int,
        saved: Saved | None = None,
        every_s: float = CHECKPOINT_EVERY_S,
        clock: Clock,
        disk: Disk = DISK,
    ) -> None:
        self.resumed = 0
        """Steps that ``resume`` brought along."""
        self._path = path
        self._binding = binding
        self._samples = samples
        self._newest = newest
        self._saved = saved
        self._every_s = every_s
        self._clock = clock
        self._disk = disk
        self._written_at = clock.monotonic()
        self._offered: tuple[int, Capture] | None = None

    def resume(self) -> tuple[int, Mapping[str, Array]] | None:
        """The steps taken before, and the tensors captured after them (read-only); else ``None``."""
        saved, self._saved = self._saved, None
        if saved is None:
            return None
        self.resumed = saved.steps
        return saved.steps, saved.tensors

    def offer(self, steps: int, capture: Capture) -> None:
        """Say that ``steps`` steps are done. ``capture`` is called now if a write is due, or when the
        training is told to stop before its next step; never later."""
        self._offered = (steps, capture)
        if self._clock.monotonic() - self._written_at >= self._every_s:
            self._write()

    def leave(self) -> None:
        """The training is cancelled between two steps: write what was last offered, if it is worth it."""
        if self._clock.monotonic() - self._written_at >= min(LITTLE_WORK_S, self._every_s):
            self._write()

    def _write(self) -> None:
        if self._offered is None:
            return
        (steps, capture), self._offered = self._offered, None
        note = {"b": self._binding, "s": steps, "c": self._samples, "l": self._newest}
        try:
            # A checkpoint is the device's own, and what it holds was made from its samples.
            content = pack_record(note, capture())
            write_file(self._path, content, purpose="worker.checkpoint", disk=self._disk, mode=0o600)
        except StorageError as error:
            _log.warning("no more checkpoints of this training: %s", error)
            self._every_s = float("inf")
        self._written_at = self._clock.monotonic()


def read_checkpoint(path: Path) -> Saved | None:
    """The checkpoint in a file; ``None`` where there is none that can be read."""
    try:
        note, tensors = unpack_record(path.read_bytes(), _WHAT)
        return Saved(
            binding=bytes(note["b"]),
            steps=int(note["s"]),
            samples=int(note["c"]),
            newest=int(note["l"]),
            tensors=tensors,
        )
    except FileNotFoundError:
        return None
    except (OSError, StorageError, KeyError, TypeError, ValueError) as error:
        _log.warning("%s is not used: %s", path, error)
        return None


def binding_of(facts: Mapping[str, Any]) -> bytes:
    """The sha256 of all that a training depends on, given as what msgpack takes."""
    packed: bytes = msgpack.packb(sorted(facts.items()))
    return hashlib.sha256(packed).digest()
