"""A fleet in which each process is of a release of its own, prepared by one of them."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from broker_coordinator.books.ledgers import AgentLedger, read_ledger
from broker_coordinator.embedded_broker import EmbeddedBroker
from fl_protocol.errors import LichenError, StorageError
from hil.local_fleet import FleetOptions, LocalFleet
from hil.processes import ManagedProcess
from hil.releases.installation import OURS, Release

__all__ = ["ReleaseFleet"]

PATIENCE_S = 90.0
PREPARE_TIMEOUT_S = 120.0
DEVICES = 3
SPREAD_S = 1.0
_TURN_S = 0.05
_PREPARE = Path(__file__).with_name("prepare.py")


class ReleaseFleet:
    """Three devices on a broker of this machine. A context: at its end nothing is left but files.

    ``large`` updates have 300 KB and travel in chunks; others fit into one message. The artifact is the one
    that ``prepared_by`` builds, of so many ``hidden`` units, as are configurations and sample stores.

    Raises:
        LichenError: the release cannot prepare it.
    """

    def __init__(
        self, folder: Path, *, prepared_by: Release, large: bool = False, hidden: int | None = None
    ) -> None:
        self._release, self._large = prepared_by, large
        self._hidden = hidden or (1024 if large else 32)
        self._broker = EmbeddedBroker("auto", 0, folder / "broker")
        self._folder = folder / "fleet"
        self._commands: Mapping[str, list[str]] = {}
        self._our_commands: Mapping[str, list[str]] = {}
        self.local: LocalFleet

    def __enter__(self) -> "ReleaseFleet":
        self._broker.start()
        try:
            options = self._options()
            words = ["-P", str(_PREPARE), str(self._folder), json.dumps(options)]
            done = self._release.run(words, timeout_s=PREPARE_TIMEOUT_S)
            if done.returncode:
                raise LichenError(f"{self._release.name} prepares no fleet: {done.stderr.strip()[-1000:]}")
            self._commands = json.loads(done.stdout)
            self.local = LocalFleet(self._folder, FleetOptions(**options))
            self._our_commands = {process.name: process.command[1:] for process in self._processes}
        except BaseException:
            self._broker.stop()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()
        self._broker.stop()

    @property
    def port(self) -> int:
        """The broker's, on loopback."""
        return self._broker.port

    def start_coordinator(self, release: Release) -> None:
        """Start the coordinator of a release."""
        self.start(self.local.coordinator, release)

    def start_agents(self, release: Release) -> None:
        """Start all agents of a release."""
        for device in self.local.agents:
            self.start_agent(device, release)

    def start_agent(self, device: str, release: Release) -> None:
        """Start the agent of a release."""
        self.start(self.local.agents[device], release)

    def start(self, process: ManagedProcess, release: Release) -> None:
        """Start a process of a release."""
        commands = self._our_commands if release is OURS else self._commands
        process.command[:] = [str(release.python), *commands[process.name]]
        process.start(release.environment)

    def serves(self, process: ManagedProcess) -> bool:
        """Whether the process that runs now has said how it is."""
        is_agent = process is not self.local.coordinator
        status = self.local.agent_status(process.name) if is_agent else self.local.status()
        return process.running and status.get("pid") == process.pid

    def stop(self) -> None:
        """End all processes in order."""
        self.local.stop()

    def version(self) -> int:
        """The newest version of the coordinator that runs now; 0 before its first status."""
        status = self.local.status()
        return int(status.get("version", 0)) if status.get("pid") == self.local.coordinator.pid else 0

    def ledger(self, device: str) -> AgentLedger | None:
        """A device's ledger, None before there is one."""
        try:
            return read_ledger(self.local.agent_state(device))
        except StorageError:
            return None

    def done(self) -> Mapping[str, int]:
        """How many updates each device was told are done."""
        ledgers = {device: self.ledger(device) for device in self.local.agents}
        return {device: len(ledger.done) if ledger else 0 for device, ledger in ledgers.items()}

    def outboxes(self) -> Mapping[bytes, str]:
        """The updates that wait on devices, and on which."""
        ledgers = {device: self.ledger(device) for device in self.local.agents}
        return {update: device for device, ledger in ledgers.items() if ledger for update in ledger.outbox}

    def wait(self, what: str, reached: Callable[[], bool]) -> None:
        """Wait until something is so.

        Raises:
            LichenError: it is not so after 90 s; with the last words of the process that ended, if one has.
        """
        if not self.waited(PATIENCE_S, reached):
            ended = [process for process in self._processes if process.exit_code not in (None, 0)]
            words = "; ".join(f"{process.name}: {process.last_words(4)}" for process in ended)
            raise LichenError(
                f"not within {PATIENCE_S:.0f} s: {what}. {words}", hint=f"see {self._folder / 'logs'}"
            )

    def waited(self, patience_s: float, reached: Callable[[], bool]) -> bool:
        """Wait until something is so, or so many seconds; whether it is."""
        deadline = time.monotonic() + patience_s
        while not reached():
            if time.monotonic() > deadline:
                return False
            time.sleep(_TURN_S)
        return True

    @property
    def tracebacks(self) -> list[str]:
        """The logs that hold one."""
        logs = sorted((self._folder / "logs").glob("*.log"))
        return [log.name for log in logs if "Traceback (most" in log.read_text(errors="replace")]

    @property
    def _processes(self) -> list[ManagedProcess]:
        return [self.local.coordinator, *self.local.agents.values()]

    def _options(self) -> dict[str, Any]:
        return {
            "devices": DEVICES,
            "versions": 0,
            "broker": self._broker.url,
            "runtime": "numpy",
            "codec": "float32" if self._large else "eden(bits=1)",
            "hidden": self._hidden,
            "settings": {
                "buffer": {"size": 2, "flush_after_s": 5.0},
                "plan": {"epochs": 1},
                # Else two devices make versions faster than a third fetches one.
                "selection": {"spread_s": SPREAD_S},
            },
        }
