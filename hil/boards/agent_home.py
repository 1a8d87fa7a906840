"""The home of an agent that is a process on this machine: what a card is to a real one.

FOLDER/agent.toml  device.pem  device.key  ca.pem    as `lichen fleet enroll` made them
       state/      the agent's; as root, a small disk of its own (tmpfs): it survives kill -9, and can be full
       clock       how far its wall clock is off
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hil.boards.board import BoardFailure
from hil.boards.errand import run
from hil.boards.site import Site
from hil.chaos.clock import MovableClock, build_shim
from hil.toml_text import with_values

__all__ = ["AgentHome"]

DISK = "48m"
FILLER = ".filler"
COMMAND_S = 60.0
_FILL_BYTES = 1 << 16


class AgentHome:
    """Folder, disk and clock of one device's agent; none of them is left where it cannot be made.

    Raises:
        BoardFailure: the samples cannot be given to it.
    """

    def __init__(self, folder: Path, device: str, site: Site, *, broker: str) -> None:
        self.folder = folder.absolute()
        self.state = self.folder / "state"
        credential = site.enroll(device, broker=broker)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in credential.iterdir():
            if path.is_file():
                shutil.copy2(path, self.folder)
        self.disk = self._mount()
        """Whether the state has a disk of its own, which can be filled."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self.clock = self._make_clock()
            """None where there is no C compiler."""
            self._agent("samples", "add", str(site.samples(device)))
            stack.pop_all()

    @property
    def words(self) -> list[str]:
        """The command that runs the agent."""
        return [sys.executable, "-m", "edge_agent", "run", "--config", str(self.folder / "agent.toml")]

    @property
    def environment(self) -> dict[str, str]:
        """What the agent's process needs for its clock."""
        return self.clock.environment if self.clock is not None else {}

    @property
    def abilities(self) -> frozenset[str]:
        """Which faults it can be given: power and link always."""
        found = {"power", "link"}
        if self.disk:
            found.add("disk")
        if self.clock is not None:
            found.add("clock")
        return frozenset(found)

    def configure(self, **values: Any) -> None:
        """Add or replace top keys of agent.toml."""
        path = self.folder / "agent.toml"
        path.write_text(with_values(path.read_text(), values))

    def status(self) -> dict[str, Any]:
        """What ``lichen-agent status --json`` says; empty before the first."""
        with contextlib.suppress(BoardFailure, ValueError):
            body: dict[str, Any] = json.loads(self._agent("status", "--json"))
            return body
        return {}

    def fill_disk(self) -> None:
        """Leave not a byte.

        Raises:
            BoardFailure: the state has no disk of its own.
        """
        if not self.disk:
            raise BoardFailure("the state has no disk of its own", hint="that needs root")
        for size in (_FILL_BYTES, 1 << 9):
            with contextlib.suppress(OSError), (self.state / FILLER).open("ab", buffering=0) as filler:
                while True:
                    filler.write(bytes(size))

    def free_disk(self) -> None:
        """Take the filler away."""
        (self.state / FILLER).unlink(missing_ok=True)

    def set_clock(self, unix_s: float) -> None:
        """Move its wall clock.

        Raises:
            BoardFailure: it has none of its own.
        """
        if self.clock is None:
            raise BoardFailure("its wall clock cannot be moved", hint="install a C compiler")
        self.clock.move_to(unix_s)

    def close(self) -> None:
        """Take the disk away; the files stay, on the ordinary one."""
        if not self.disk:
            return
        self.disk = False
        self.free_disk()
        aside = self.state.with_name("state.files")
        shutil.copytree(self.state, aside, symlinks=True)
        until = time.monotonic() + COMMAND_S
        while subprocess.run(
            ["umount", str(self.state)], capture_output=True, timeout=10, check=False
        ).returncode:
            if time.monotonic() > until:
                raise BoardFailure(f"{self.state} is in use and cannot be unmounted")
            time.sleep(0.1)
        self.state.rmdir()
        aside.rename(self.state)

    def _mount(self) -> bool:
        self.state.mkdir(exist_ok=True)
        if os.geteuid() != 0 or sys.platform != "linux":
            return False
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=770", "lichen-hil", str(self.state)]
        return subprocess.run(words, capture_output=True, timeout=10, check=False).returncode == 0

    def _make_clock(self) -> MovableClock | None:
        shim = build_shim(self.folder)
        return MovableClock(shim, self.folder / "clock") if shim is not None else None

    def _agent(self, *words: str) -> str:
        """Run ``lichen-agent``; what it printed."""
        done = run(
            [sys.executable, "-m", "edge_agent", *words, "--config", str(self.folder / "agent.toml")],
            within_s=COMMAND_S,
            folder=self.folder,
        )
        if done.returncode:
            raise BoardFailure(
                f"lichen-agent {' '.join(words)} ended with {done.returncode}", hint=done.stderr
            )
        return done.stdout
