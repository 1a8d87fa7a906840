"""Native chatter: what a library in C writes to the standard error of the whole process, unasked.

An interpreter says ``INFO: Created TensorFlow Lite XNNPACK delegate for CPU.`` where its first graph is
opened: into the line of a terminal that a spinner draws, and once a version into the log of a device. It
heeds no setting.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

__all__ = ["without_info_lines"]

_STDERR = 2
_INFO = b"INFO:"
_ONE_AT_A_TIME = threading.Lock()
"""There is one standard error: two threads that borrowed it at once would give back each other's."""
_READ_OUT = "read -r word || exec grep -av '^INFO:' /proc/self/fd/{held}"
"""A word on its input ends it; an input that ends without one lets it write what is held."""
_LAST_WORD = b"well\n"
_END_S = 10.0


@contextlib.contextmanager
def without_info_lines() -> Iterator[None]:
    """Hold back what is written to descriptor 2 meanwhile; at the end all of it is written but lines that
    begin with ``INFO:``, also where the end is that of this process. Keep it short: a process that is started
    meanwhile writes where nobody reads. Where the system cannot hold anything back, nothing is."""
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, AttributeError):
            held = os.memfd_create("stderr")
            stack.callback(os.close, held)
            usual = os.dup(_STDERR)
            stack.callback(os.close, usual)
            stack.enter_context(_heir(held, usual))
            stack.callback(_give_back, held, usual)
            os.dup2(held, _STDERR)
        yield


@contextlib.contextmanager
def _heir(held: int, usual: int) -> Iterator[None]:
    """A process that writes what is held where this one dies: nobody else has it then. Where there is
    no shell, what is held is lost with the process."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            command = ["sh", "-c", _READ_OUT.format(held=held)]
            heir = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=usual, stderr=usual, pass_fds=(held,), bufsize=0
            )
            stack.callback(_dismiss, heir)
        yield


def _dismiss(heir: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # a Ctrl-C may have ended it before
        heir.communicate(_LAST_WORD, timeout=_END_S)


def _give_back(held: int, usual: int) -> None:
    os.dup2(usual, _STDERR)
    os.lseek(held, 0, os.SEEK_SET)
    with contextlib.suppress(OSError), os.fdopen(os.dup(held), "rb") as lines:
        said = b"".join(line for line in lines if not line.startswith(_INFO))
        while said:
            said = said[os.write(usual, said) :]
