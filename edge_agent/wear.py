"""Wear: how much this agent has asked of the memory card that its state lies on.

Cards die of writes. A participation is to cost no more than six fsyncs, and twice its payload and 64 KB.
"""

import contextlib
from pathlib import Path

__all__ = ["Wear"]


class Wear:
    """Counters since the process began. A worker's checkpoints are written by another process."""

    __slots__ = ("_bytes", "_io", "_syncs")

    def __init__(self, io: Path = Path("/proc/self/io")) -> None:
        self._io = io
        self._syncs = -1
        self._bytes: int | None = None

    def body(self, syncs: int) -> dict[str, int | None]:
        """What the status shows: ``syncs``, and ``bytes_written`` as the kernel counts what is to reach a
        disk, as of the last sync; None where it does not tell."""
        # Read only where something was synced: to write the status is to write, and would be news again.
        if syncs != self._syncs:
            self._syncs = syncs
            with contextlib.suppress(OSError, ValueError):
                counts = dict(line.split(": ") for line in self._io.read_text().splitlines())
                self._bytes = int(counts["write_bytes"]) if "write_bytes" in counts else None
        return {"syncs": syncs, "bytes_written": self._bytes}
