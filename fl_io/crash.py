"""Crash points: named places where a test lets the process die as by a power cut.

``LICHEN_CRASH_POINT=agent.update.committed`` in the environment kills the process at its first passage of
that point, ``agent.update.committed:3`` at its third. Several, with commas between them, kill it at
whichever comes first. Its last words, on standard error, name the point. Without the variable a passage
costs one comparison.

A point is written as a literal, or as ``f"{purpose}.step"`` in a function whose callers give a literal
``purpose``: so the list of all points follows from the code (``tests/process/crash_points.py``).
"""

import os
import signal

__all__ = ["LAST_WORDS", "crash_point"]

LAST_WORDS = "crash point "
"""How the line begins that a process leaves as it dies; the rest is the point's name."""


def _read(setting: str) -> dict[str, int]:
    points = (point.partition(":") for point in setting.split(",") if point)
    return {name: int(count or 1) for name, _, count in points}


_passages_left = _read(os.environ.get("LICHEN_CRASH_POINT", ""))


def crash_point(name: str) -> None:
    """Die here by SIGKILL if the environment asks for this point and passage."""
    if _passages_left and name in _passages_left:
        _passages_left[name] -= 1
        if _passages_left[name] == 0:
            os.write(2, f"{LAST_WORDS}{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
