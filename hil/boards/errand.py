"""Errands: programs that are run to their end on this machine, none of them for ever.

An errand is a session of its own. Where its time is over all of it is ended, not its first process alone:
what that had started would go on, hold what it had mounted, and keep our end of its output open.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hil.boards.board import BoardFailure

__all__ = ["run"]

_LAST_WORDS_S = 5.0


def run(
    words: Sequence[str] | str,
    *,
    within_s: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command, or a line of shell, to its end, whatever that is; its output is text, its input empty.
    ``environment`` is all of it, ours where there is none.

    Raises:
        BoardFailure: it does not end within ``within_s``; nothing of it runs any more then.
        OSError: there is no such program.
    """
    child = subprocess.Popen(
        words,
        shell=isinstance(words, str),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        out, said = child.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        _end(child)
        named = words if isinstance(words, str) else " ".join(words)
        raise BoardFailure(
            f"no end of {named!r} within {within_s:.0f} s", hint="is the machine very busy?"
        ) from None
    except BaseException:
        # A Ctrl-C reaches us alone.
        _end(child)
        raise
    return subprocess.CompletedProcess(words, child.returncode, out, said)


def _end(child: "subprocess.Popen[str]") -> None:
    # Nobody has waited for it yet, so its number, and with it the group's, is nobody else's.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=_LAST_WORDS_S)
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_LAST_WORDS_S)
