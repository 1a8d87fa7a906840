"""Limits: which of the bounds that a service was given the kernel really holds.

Stock Raspberry Pi OS has the memory controller switched off, and then takes a unit's ``MemoryMax=`` without
a word. What a control group has no file for, nobody holds.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["Limits", "read_limits"]

_POLICIES = {
    getattr(os, "SCHED_OTHER", 0): "other",
    getattr(os, "SCHED_BATCH", 3): "batch",
    getattr(os, "SCHED_IDLE", 5): "idle",
}
_DEFAULT_WEIGHT = 100
_N = TypeVar("_N", int, float)
_V1_UNLIMITED = 1 << 62
"""Version 1 says "no limit" by the largest multiple of a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What holds for this process and its children together; None where nothing does.

    ``memory_bytes`` is the least that it or a group above it allows, ``memory_off`` that the kernel has no
    memory controller to hold any. ``cpu_weight`` and ``io_weight`` are None where they
    are the default; ``cpu_cores`` is a
    share of processors, as 0.8. ``scheduling`` is idle, batch, other, or the number of another policy.
    """

    memory_bytes: int | None = None
    memory_off: bool = True
    cpu_weight: int | None = None
    cpu_cores: float | None = None
    io_weight: int | None = None
    tasks: int | None = None
    scheduling: str = "other"

    @property
    def warning(self) -> str:
        """What a person should know, in a sentence; empty where memory is held."""
        if self.memory_bytes is not None:
            return ""
        if self.memory_off:
            return (
                "no memory limit of the service holds: this kernel's memory control group is off"
                " (add cgroup_enable=memory cgroup_memory=1 to the kernel's command line)"
            )
        return "no memory limit is set for the agent as a whole"

    def body(self) -> dict[str, int | float | str | bool | None]:
        """What the status shows."""
        return {
            "memory_bytes": self.memory_bytes,
            "memory_off": self.memory_off,
            "cpu_weight": self.cpu_weight,
            "cpu_cores": self.cpu_cores,
            "io_weight": self.io_weight,
            "tasks": self.tasks,
            "scheduling": self.scheduling,
        }


def read_limits(root: Path = Path("/"), *, policy: int | None = None) -> Limits:
    """Read them, below ``root``; a system without control groups has none. ``policy`` is the scheduling
    policy's number, this process' own unless given."""
    groups = _groups(root)
    unified = root / "sys/fs/cgroup"
    hybrid = unified / "unified"
    base = unified if (unified / "cgroup.controllers").exists() else hybrid
    lineage = list(_lineage(base, groups[""])) if "" in groups else []
    memory, memory_off = _memory(root, groups, base, lineage)
    own = lineage[0] if lineage else base
    return Limits(
        memory_bytes=memory,
        memory_off=memory_off,
        cpu_weight=_weight(own / "cpu.weight"),
        cpu_cores=_least(_cores(folder / "cpu.max") for folder in lineage),
        io_weight=_weight(own / "io.weight") or _weight(own / "io.bfq.weight"),
        tasks=_least(_number(folder / "pids.max") for folder in lineage),
        scheduling=_scheduling(policy),
    )


def _memory(
    root: Path, groups: Mapping[str, str], base: Path, lineage: list[Path]
) -> tuple[int | None, bool]:
    """The least of all groups, and whether there is no controller at all."""
    legacy = root / "sys/fs/cgroup/memory"
    if "memory" in groups and legacy.is_dir():
        bounds = [_number(folder / "memory.limit_in_bytes") for folder in _lineage(legacy, groups["memory"])]
        return _least(bound for bound in bounds if bound is not None and bound < _V1_UNLIMITED), False
    # A group's own list would be empty too where only systemd did not pass the controller down.
    controllers = _text(base / "cgroup.controllers").split()
    return _least(_number(folder / "memory.max") for folder in lineage), "memory" not in controllers


def _groups(root: Path) -> dict[str, str]:
    """Path of this process' group by controller; that of version 2 is under the empty name."""
    found: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            found |= dict.fromkeys(parts[1].split(","), parts[2])
    return found


def _lineage(base: Path, group: str) -> Iterator[Path]:
    """The group's folder and those above it; what a container does not see is left out."""
    folder = base / group.strip("/")
    for candidate in (folder, *folder.parents):
        if not candidate.is_relative_to(base):
            return
        if candidate.is_dir():
            yield candidate


def _least(values: Iterable[_N | None]) -> _N | None:
    return min((value for value in values if value is not None), default=None)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _weight(path: Path) -> int | None:
    """``100``, or ``default 100``; None where it is not held, or is the default."""
    words = _text(path).split()
    value = int(words[-1]) if words and words[-1].isdecimal() and words[0] in ("default", words[-1]) else None
    return None if value == _DEFAULT_WEIGHT else value


def _cores(path: Path) -> float | None:
    words = _text(path).split()
    if len(words) != 2 or not all(word.isdecimal() for word in words) or words[1] == "0":
        return None
    return int(words[0]) / int(words[1])


def _scheduling(policy: int | None) -> str:
    if policy is None:
        policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else 0
    return _POLICIES.get(policy, str(policy))


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return ""
