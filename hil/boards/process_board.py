"""The boards `process` and `netns`: the agent as a process on this machine, at the end of a line of its own.

It needs nothing but mosquitto; as root it has a disk that can be full, with a C compiler a clock that can be
wrong. A power cut is kill -9 of the agent and of all that it started: the page cache survives that, so it
does not show a missing fsync (tests/simulated_disk.py does).
"""

import contextlib
from pathlib import Path
from typing import Any

from hil.boards.agent_home import AgentHome
from hil.boards.board import BoardFailure
from hil.boards.confinement import UNCONFINED, Confinement
from hil.boards.line import Line, RelayLine
from hil.boards.site import Site
from hil.processes import ManagedProcess

__all__ = ["ProcessBoard"]

STOP_S = 30.0


class ProcessBoard:
    """One device as a process; see ``hil.boards.board.Board``. ``line`` is its way to the broker, a relay
    unless given, ``confinement`` holds it in; it closes both, also where it cannot be made.

    Raises:
        BoardFailure: its samples cannot be given to it.
    """

    slowness = 1.0

    def __init__(
        self,
        device: str,
        site: Site,
        folder: Path,
        *,
        line: Line | None = None,
        confinement: Confinement = UNCONFINED,
    ) -> None:
        self.device = device
        self.confinement = confinement
        with contextlib.ExitStack() as stack:
            stack.callback(confinement.close)
            self._line = line or RelayLine(site.port)
            stack.callback(self._line.close)
            self.home = AgentHome(folder, device, site, broker=self._line.broker_url)
            stack.callback(self.home.close)
            self.abilities = self.home.abilities
            words = confinement.enter(self._line.enter(self.home.words))
            self._agent = ManagedProcess(device, words, folder / "agent.log", folder=folder)
            self._started = False
            stack.pop_all()

    def start(self) -> None:
        """Start the agent."""
        if self._agent.running:
            raise BoardFailure(f"{self.device} runs already", hint="stop it, or cut its power")
        self._agent.start(self.home.environment)
        self._started = True

    def stop(self) -> None:
        """SIGTERM; the agent ends by itself.

        Raises:
            BoardFailure: it does not.
        """
        self._expect_alive()
        self._started = False
        code = self._agent.stop(STOP_S)
        if code not in (None, 0):
            raise BoardFailure(
                f"{self.device} was to stop and ended with {code}", hint=self._agent.last_words()
            )

    def cut_power(self) -> None:
        """kill -9 of the agent and its workers."""
        self._started = False
        self._agent.kill_family()

    def link(self, profile: str) -> None:
        """Change the line."""
        self._line.change(profile)

    def fill_disk(self) -> None:
        """Fill the state's own disk."""
        self.home.fill_disk()

    def free_disk(self) -> None:
        """Empty it."""
        self.home.free_disk()

    def set_clock(self, unix_s: float) -> None:
        """Move the agent's clock, by a library that is preloaded."""
        self.home.set_clock(unix_s)

    def status(self) -> dict[str, Any]:
        """What it says.

        Raises:
            BoardFailure: it has ended, and nobody asked it to.
        """
        self._expect_alive()
        return self.home.status()

    def books(self) -> Path | None:
        """Its own state folder."""
        return self.home.state if (self.home.state / "agent.db").exists() else None

    def logs(self) -> str:
        """The agent's log."""
        return self._agent.last_words(500)

    def close(self) -> None:
        """End the agent, its line, its disk."""
        self._started = False
        with contextlib.ExitStack() as stack:
            for end in (self.confinement.close, self.home.close, self._line.close, self._agent.kill_family):
                stack.callback(end)

    def _expect_alive(self) -> None:
        if self._started and not self._agent.running:
            self._started = False
            words = self._agent.last_words()
            raise BoardFailure(f"{self.device} ended by itself with {self._agent.exit_code}", hint=words)
