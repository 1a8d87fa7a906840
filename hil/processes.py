"""Real processes under watch: started with a log, ended by pid, never left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_protocol.errors import LichenError

__all__ = ["ManagedProcess", "children", "descendants"]

STOP_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1


class ManagedProcess:
    """One child process; its output goes to ``log``. It dies with us, even if we are killed (Linux)."""

    def __init__(self, name: str, command: Sequence[str], log: Path, *, folder: Path) -> None:
        self.name = name
        self.log = log
        self.command = list(command)
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 before the first start."""
        return self._child.pid if self._child is not None else 0

    @property
    def running(self) -> bool:
        """Whether the child is alive."""
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the child ended: its code, minus the signal, or ``None`` while it runs."""
        return self._child.poll() if self._child is not None else None

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it, or start it again; the log goes on. ``environment`` adds variables."""
        with self.log.open("ab") as output:
            # A session of its own: a Ctrl-C in the terminal reaches us alone, and we end it in order.
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                # Started from the main thread, before there are others: no lock can be held in the child.
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait(STOP_TIMEOUT_S)

    def kill_family(self) -> None:
        """kill -9 of it and of all that descends from it, in sessions of their own too; wait for its end."""
        family = [self.pid, *descendants(self.pid)] if self.running else []
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill()
        until = time.monotonic() + STOP_TIMEOUT_S
        while any(_alive(pid) for pid in family) and time.monotonic() < until:
            time.sleep(0.01)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """SIGTERM, a bounded wait, then kill -9; the exit code."""
        self.signal(signal.SIGTERM)
        if self._child is not None:
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.exit_code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is running."""
        if self._child is not None and self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end.

        Raises:
            LichenError: it still runs after ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while self.running:
            if time.monotonic() > deadline:
                raise LichenError(f"{self.name} still runs after {timeout_s:.0f} s", hint=f"see {self.log}")
            time.sleep(0.05)
        code = self.exit_code
        return code if code is not None else 0

    def last_words(self, lines: int = 12) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def children(pid: int) -> list[int]:
    """The processes that a process has started (Linux)."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, those that they have started, and so on (Linux)."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def _alive(pid: int) -> bool:
    try:
        # What nobody has collected yet is dead all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _die_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)
