"""Native chatter: what a library in C writes to the standard error of the whole process, unasked.

An interpreter says ``INFO: Created TensorFlow Lite XNNPACK delegate for CPU.`` where its first graph is
opened: into the line of a terminal that a spinner draws, and once a version into the log of a device. It
heeds no setting.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

__all__ = ["without_info_lines"]

_STDERR = 2
_INFO = b"INFO:"
_ONE_AT_A_TIME = threading.Lock()
"""There is one standard error: two threads that borrowed it at once would give back each other's."""


@contextlib.contextmanager
def without_info_lines() -> Iterator[None]:
    """Hold back what is written to descriptor 2 meanwhile; at the end all of it is written but lines that
    begin with ``INFO:``. Keep it short: a process that is started meanwhile writes where nobody reads. Where
    the system cannot hold anything back, nothing is."""
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, AttributeError):
            held = os.memfd_create("stderr")
            stack.callback(os.close, held)
            usual = os.dup(_STDERR)
            stack.callback(os.close, usual)
            stack.callback(_give_back, held, usual)
            os.dup2(held, _STDERR)
        yield


def _give_back(held: int, usual: int) -> None:
    os.dup2(usual, _STDERR)
    os.lseek(held, 0, os.SEEK_SET)
    with contextlib.suppress(OSError), os.fdopen(os.dup(held), "rb") as lines:
        said = b"".join(line for line in lines if not line.startswith(_INFO))
        while said:
            said = said[os.write(usual, said) :]
