"""The board `ssh`: a real device, installed, started, stopped and asked by commands over SSH.

Its link is a relay on this machine, so that it can be cut and slowed without touching the board. Power, clock
and a disk that may be full are what its owner says they are: see ``ssh_inventory``. On the board everything
lies below one folder, which ``close`` removes again.
"""

import contextlib
import io
import json
import shlex
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

from hil.boards.board import BoardFailure
from hil.boards.errand import run
from hil.boards.line import RelayLine
from hil.boards.patience import Patience
from hil.boards.site import Site
from hil.boards.ssh_inventory import SshEntry

__all__ = ["SshBoard"]

COMMAND_S = 120.0
INSTALL_S = 600.0
FILL_S = 300
STOP_S = 60.0
_UNREACHABLE = 255
"""How ssh ends where it could not connect."""
_LOG_BYTES = 1 << 20
_MARK = ".lichen-hil"
"""Lies in a folder that is ours to remove."""
_BOOKS = """
import sqlite3, sys
with sqlite3.connect("file:%s?mode=ro" % sys.argv[1], uri=True) as book, sqlite3.connect(sys.argv[2]) as copy:
    book.backup(copy)
"""


class SshBoard:
    """One board of boards.toml; see ``hil.boards.board.Board``. It is installed when this is made: ``host``
    is this machine as the board sees it, ``listen`` where its link listens.

    Raises:
        BoardFailure: it does not answer, or cannot be installed.
    """

    def __init__(
        self, entry: SshEntry, site: Site, folder: Path, *, device: str, host: str, listen: str
    ) -> None:
        self.device = device
        self.slowness = entry.slowness
        self.abilities = _abilities(entry)
        self._entry = entry
        self._say = site.say
        self._here = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._line = RelayLine(site.port, host=host, listen=listen)
        try:
            self._install(site)
        except BaseException:
            # The key that was brought there does not stay.
            self.close()
            raise

    def start(self) -> None:
        """Have power, and start the agent as a process of its own session."""
        self._give_power()
        if self._pid_alive():
            raise BoardFailure(f"{self.device} runs already", hint="stop it, or cut its power")
        agent = f"{self._agent} run --config agent.toml"
        # A session of its own: it outlives the connection that started it, and can be ended as a whole.
        self._remote(f"setsid sh -c 'echo $$ >agent.pid; exec {agent}' </dev/null >>agent.log 2>&1 &")
        Patience(self._say).until(f"{self.device}: its agent runs", self._pid_alive, within_s=COMMAND_S)

    def stop(self) -> None:
        """SIGTERM; the agent ends by itself.

        Raises:
            BoardFailure: it does not.
        """
        self._remote("test -f agent.pid && kill -TERM $(cat agent.pid) 2>/dev/null; true")
        Patience(self._say).until(
            f"{self.device}: its agent ends", lambda: not self._pid_alive(), within_s=STOP_S * self.slowness
        )

    def cut_power(self) -> None:
        """By the command of its owner.

        Raises:
            BoardFailure: there is none, it fails, or the agent goes on.
        """
        if not self._entry.power_off:
            raise BoardFailure(f"{self.device} has no power_off", hint="name a command in boards.toml")
        self._here_run(self._entry.power_off)
        Patience(self._say).until(f"{self.device} is off", self._gone, within_s=COMMAND_S)

    def link(self, profile: str) -> None:
        """Change the relay."""
        self._line.change(profile)

    def fill_disk(self) -> None:
        """Fill the file system of its folder.

        Raises:
            BoardFailure: its owner has not allowed that.
        """
        if not self._entry.disk:
            raise BoardFailure(
                f"the disk of {self.device} must not be filled", hint="disk = true in boards.toml"
            )
        # Room is taken at once where the file system can; what is left is written, and not for ever, whatever
        # becomes of this connection.
        self._remote(
            "free=$(df -Pk state | awk 'NR==2 {print $4}');"
            " fallocate -l ${free}K state/.filler 2>/dev/null;"
            f" timeout {FILL_S} dd if=/dev/zero bs=64k 2>/dev/null >>state/.filler;"
            f" timeout {FILL_S} dd if=/dev/zero bs=512 2>/dev/null >>state/.filler; true",
            timeout_s=2 * FILL_S + COMMAND_S,
        )

    def free_disk(self) -> None:
        """Take the filler away."""
        self._remote("rm -f state/.filler")

    def set_clock(self, unix_s: float) -> None:
        """By the command of its owner.

        Raises:
            BoardFailure: there is none, or it fails.
        """
        if not self._entry.set_clock:
            raise BoardFailure(f"{self.device} has no set_clock", hint="name a command in boards.toml")
        self._remote(
            self._entry.set_clock.format(
                device=self.device, folder=self._entry.folder, unix_s=f"{unix_s:.0f}"
            )
        )

    def status(self) -> dict[str, Any]:
        """What its agent says; empty while it is unreachable."""
        with contextlib.suppress(BoardFailure, ValueError):
            body: dict[str, Any] = json.loads(
                self._remote(f"{self._agent} status --json --config agent.toml")
            )
            return body
        return {}

    def books(self) -> Path | None:
        """A copy of its ``agent.db``, made by sqlite on the board."""
        source = shlex.quote("state/agent.db")
        copy = "state/.books.db"
        self._remote(f"rm -f {copy}; {self._python} - {source} {copy}", given=_BOOKS.encode())
        content = self._remote_bytes(f"cat {copy}; rm -f {copy}")
        if not content:
            return None
        folder = self._here / "books"
        folder.mkdir(exist_ok=True)
        (folder / "agent.db").write_bytes(content)
        return folder

    def logs(self) -> str:
        """The end of the agent's log; empty while it is unreachable."""
        with contextlib.suppress(BoardFailure):
            return self._remote(f"tail -c {_LOG_BYTES} agent.log")
        return ""

    def close(self) -> None:
        """End the agent, keep its log here, and remove its folder from the board."""
        try:
            with contextlib.suppress(BoardFailure):
                self._give_power()
                self._remote("test -f agent.pid && kill -KILL -$(cat agent.pid) 2>/dev/null; true")
                (self._here / "agent.log").write_text(self.logs())
                folder = shlex.quote(self._entry.folder)
                self._ssh(f"test -e {folder}/{_MARK} && rm -rf {folder}", timeout_s=COMMAND_S)
        finally:
            self._line.close()

    @property
    def _python(self) -> str:
        return shlex.quote(self._entry.python)

    @property
    def _agent(self) -> str:
        return self._entry.agent or f"{self._python} -I payload/lichen-agent"

    def _install(self, site: Site) -> None:
        """Bring credential, samples and payload to the board."""
        entry = self._entry
        credential = site.enroll(self.device, broker=self._line.broker_url)
        folder = shlex.quote(entry.folder)
        # It is removed at the end, hence nothing that was there before.
        self._ssh(
            f"if test -e {folder} && ! test -e {folder}/{_MARK}; then"
            f" echo {folder} is there already, and not of an earlier run >&2; exit 1; fi;"
            f" mkdir -p {folder} && chmod 700 {folder} && touch {folder}/{_MARK}",
            timeout_s=COMMAND_S,
        )
        files = {path.name: path for path in credential.iterdir() if path.is_file()}
        files["samples.npz"] = site.samples(self.device)
        self._remote("tar -xf - && mkdir -p state && rm -rf state/*", given=_archive(files))
        if entry.payload is not None:
            self._say(f"{self.device}: the payload is installed")
            self._remote("rm -rf payload && mkdir payload")
            strip = "tar -xJf - -C payload"
            self._remote(strip, given=entry.payload.read_bytes(), timeout_s=INSTALL_S)
            inside = self._remote(
                "cd payload && ls -d */lichen-agent lichen-agent 2>/dev/null | head -1"
            ).strip()
            if inside != "lichen-agent":
                top = shlex.quote(inside.partition("/")[0])
                self._remote(f"mv payload payload.in && mv payload.in/{top} payload && rm -rf payload.in")
        self._remote(f"{self._agent} samples add samples.npz --config agent.toml")

    def _give_power(self) -> None:
        if self._entry.power_on and not self._answers():
            self._here_run(self._entry.power_on)
        Patience(self._say).until(
            f"{self.device} answers ssh", self._answers, within_s=self._entry.boot_s, poll_s=0.5
        )

    def _answers(self) -> bool:
        try:
            self._ssh("true", timeout_s=20.0)
        except BoardFailure:
            return False
        return True

    def _pid_alive(self) -> bool:
        # By its command line: after a power cut its number may be another process's, and what nobody has
        # collected yet has none.
        check = "test -f agent.pid && grep -q agent.toml /proc/$(cat agent.pid)/cmdline 2>/dev/null"
        return self._remote(f"{check} && echo alive; true").strip() == "alive"

    def _gone(self) -> bool:
        """Whether the agent does not run, or the board does not even answer."""
        try:
            return not self._pid_alive()
        except BoardFailure:
            return True

    def _here_run(self, command: str) -> None:
        """Run a command of the owner's on this machine."""
        words = command.format(device=self.device, folder=self._entry.folder)
        done = run(words, within_s=COMMAND_S)
        if done.returncode:
            raise BoardFailure(f"{words!r} ended with {done.returncode}", hint=done.stdout + done.stderr)

    def _remote(self, command: str, *, given: bytes = b"", timeout_s: float = COMMAND_S) -> str:
        return self._remote_bytes(command, given=given, timeout_s=timeout_s).decode(errors="replace")

    def _remote_bytes(self, command: str, *, given: bytes = b"", timeout_s: float = COMMAND_S) -> bytes:
        """Run a command in the board's folder; what it printed."""
        return self._ssh(
            f"cd {shlex.quote(self._entry.folder)} && {{ {command}\n}}", given=given, timeout_s=timeout_s
        )

    def _ssh(self, command: str, *, given: bytes = b"", timeout_s: float) -> bytes:
        words = [
            "ssh",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
            *self._entry.options,
            self._entry.ssh,
        ]
        try:
            done = subprocess.run(
                [*words, command], input=given, capture_output=True, timeout=timeout_s, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BoardFailure(f"{self.device} does not answer: {error}", hint=" ".join(words)) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            what = (
                "cannot be reached"
                if done.returncode == _UNREACHABLE
                else f"ended with {done.returncode}: {command}"
            )
            raise BoardFailure(f"{self.device}: {what}", hint=said)
        return done.stdout


def _abilities(entry: SshEntry) -> frozenset[str]:
    given = {"link": True, "power": entry.power_off, "disk": entry.disk, "clock": entry.set_clock}
    return frozenset(name for name, there in given.items() if there)


def _archive(files: dict[str, Path]) -> bytes:
    """A tar of these files, readable by their owner alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, path in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = path.stat().st_size, 0o600, int(time.time())
            with path.open("rb") as content:
                archive.addfile(entry, content)
    return buffer.getvalue()
