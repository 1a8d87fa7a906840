"""Crash points: named places where a test lets the process die as by a power cut.

``LICHEN_CRASH_POINT=coordinator.committed`` in the environment kills the process at its first passage of
that point, ``coordinator.committed:3`` at its third. Without the variable a passage costs one comparison.
"""

import os
import signal

__all__ = ["crash_point"]

_NAME, _, _COUNT = os.environ.get("LICHEN_CRASH_POINT", "").partition(":")
_passages_left = [int(_COUNT or 1)] if _NAME else []


def crash_point(name: str) -> None:
    """Die here by SIGKILL if the environment asks for this point and passage."""
    if _passages_left and name == _NAME:
        _passages_left[0] -= 1
        if _passages_left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
