"""Confinement: a process that has no more memory and no more cores than a small device has.

By a control group where this user may make one (version 2, or 1), else by RLIMIT_DATA: what holds is said in
``how``. RLIMIT_DATA holds each process for itself, a control group all of them together; the true test of a
small machine is an emulated one.
"""

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError

__all__ = ["PI_ZERO_BYTES", "UNCONFINED", "Confinement", "confine"]

PI_ZERO_BYTES = 400 << 20
"""What the agent's unit grants it (MemoryMax=), on a Pi Zero 2 W of 512 MB."""
_GROUPS = Path("/sys/fs/cgroup")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What holds a process in, and all that it starts. ``prefix`` are the words before its command, ``group``
    the control group that was made for it, ``how`` says in a few words what holds."""

    prefix: tuple[str, ...] = ()
    group: Path | None = None
    how: str = "nothing"

    def enter(self, words: Sequence[str]) -> list[str]:
        """A command line that runs ``words`` inside, as the same process."""
        return [*self.prefix, *words]

    def peak_bytes(self) -> int | None:
        """The most memory that was in use inside at a time, its page cache included; None where nobody
        counts."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                if self.group is not None:
                    return int((self.group / name).read_text())
        return None

    def close(self) -> None:
        """Remove the group, once everybody has left it."""
        if self.group is None:
            return
        until = time.monotonic() + 5.0
        while self.group.exists() and time.monotonic() < until:
            with contextlib.suppress(OSError):
                self.group.rmdir()
                return
            time.sleep(0.05)


UNCONFINED = Confinement()


def confine(memory_bytes: int, *, groups: Path = _GROUPS) -> Confinement:
    """Confinement to so much memory and to one core.

    Raises:
        ConfigError: neither a control group nor ``prlimit`` and ``taskset`` can be had here.
    """
    taskset, prlimit = shutil.which("taskset"), shutil.which("prlimit")
    if taskset is None:
        raise ConfigError("one core needs taskset", hint="apt install util-linux")
    core = str(min(os.sched_getaffinity(0)))
    pinned = (taskset, "-c", core)
    group = _make_group(groups, memory_bytes)
    if group is not None:
        enter = ("sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "enter")
        return Confinement(prefix=(*enter, *pinned), group=group, how=f"control group {group}, core {core}")
    if prlimit is None:
        raise ConfigError("a bound of memory needs prlimit", hint="apt install util-linux")
    limited = (prlimit, f"--data={memory_bytes}")
    return Confinement(prefix=(*limited, *pinned), how=f"RLIMIT_DATA of each process, core {core}")


def _make_group(groups: Path, memory_bytes: int) -> Path | None:
    """A control group with this limit, or None."""
    name = f"lichen-hil-{os.getpid()}-{next(_numbers)}"
    for base, limit in ((groups, "memory.max"), (groups / "memory", "memory.limit_in_bytes")):
        group = base / name
        with contextlib.suppress(OSError):
            if not (base / "cgroup.procs").exists():
                continue
            group.mkdir()
            try:
                if (group / limit).exists():
                    (group / limit).write_text(str(memory_bytes))
                    return group
            except OSError:
                pass
            group.rmdir()
    return None
