"""Commands on this machine that a board or a site has run, none of them for ever."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from hil.boards.board import BoardFailure

__all__ = ["run"]


def run(
    words: Sequence[str] | str, *, within_s: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, or a line of shell, to its end, whatever that is; its output is text.

    Raises:
        BoardFailure: it does not end within ``within_s``.
    """
    try:
        return subprocess.run(
            words,
            shell=isinstance(words, str),
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        named = words if isinstance(words, str) else " ".join(words)
        raise BoardFailure(
            f"no end of {named!r} within {within_s:.0f} s", hint="is the machine very busy?"
        ) from None
