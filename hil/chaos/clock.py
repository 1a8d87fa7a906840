"""Wall clocks that jump: processes started with ``environment`` read theirs through a file.

A small C library is preloaded; libfaketime would do, were it not that under it Python's ``time.sleep`` fails
(0.9.10: an absolute sleep on the monotonic clock).
"""

import shutil
import struct
import subprocess
import time
from pathlib import Path

__all__ = ["MovableClock", "build_shim"]

YEAR_S = 31_556_952
_SOURCE = Path(__file__).with_name("clock_shim.c")


def build_shim(folder: Path) -> Path | None:
    """The library, built in ``folder``; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "clock_shim.so"
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    return library if made.returncode == 0 else None


class MovableClock:
    """The clock of one process: ``move`` it while it runs."""

    def __init__(self, shim: Path, file: Path) -> None:
        self._file = file
        self._file.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(shim), "LICHEN_CLOCK_FILE": str(file)}

    def move(self, years: float) -> None:
        """Let it be ``years`` off the machine's clock from now on."""
        self._shift(int(years * YEAR_S))

    def move_to(self, unix_s: float) -> None:
        """Let it be ``unix_s`` seconds after 1970 now, and go on from there."""
        self._shift(int(unix_s - time.time()))

    def _shift(self, seconds: int) -> None:
        with self._file.open("r+b") as stream:  # in place: the process has it mapped
            stream.write(struct.pack("q", seconds))
