"""Birthmarks: what tells a process from every other of the same number, before and after it.

Numbers of processes are given again, and after a boot most likely in the same order: the agent that starts
with the machine gets the one it had. So a number says little without the boot, and when the process began.
"""

import contextlib
import os
from pathlib import Path

__all__ = ["birthmark", "is_alive"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_STARTED = 19
"""Where a process's start is among what follows its name in ``/proc/<pid>/stat``: proc(5), field 22."""


def birthmark(pid: int) -> str:
    """The boot's id and the clock ticks from it to the start of process ``pid``: ``<boot>/<ticks>``. Either
    is empty where the kernel does not tell (it is no Linux, or there is no such process)."""
    boot = ticks = ""
    with contextlib.suppress(OSError):
        boot = _BOOT.read_text("ascii").strip()
    with contextlib.suppress(OSError, IndexError):
        # The name may hold blanks and brackets: it ends at the last one.
        ticks = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[_STARTED].decode("ascii")
    return f"{boot}/{ticks}"


def is_alive(pid: int, mark: str) -> bool:
    """Whether the process ``pid`` that had this birthmark lives; where a part of either is not known, it is
    not compared."""
    known = zip(mark.split("/"), birthmark(pid).split("/"), strict=False)
    if any(before and now and before != now for before, now in known):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
