"""The site: the operator's side of a fleet, on this machine, as real processes.

FOLDER/fleet/           what `lichen fleet init` makes: authority, coordinator, broker, devices
       fleet/artifact   what it trains, and held_out.npz
       samples/         an npz of x and y for each device
       logs/            mosquitto.log, coordinator.log

Mutual TLS, as in the field. The listener for devices is on loopback unless boards are elsewhere.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from broker_coordinator.storage.sqlite_store import SqliteStore
from hil.boards.board import BoardFailure
from hil.boards.errand import run
from hil.boards.patience import Patience
from hil.fleet_broker import FleetBroker
from hil.mosquitto import free_ports, mosquitto_program
from hil.processes import ManagedProcess
from hil.toml_text import toml_text, with_values
from hil.workload import Samples, Workload, digits_workload, own_workload

__all__ = ["Site", "SiteOptions"]

NAME = "hil"
START_S = 30.0
COMMAND_S = 60.0
_SHARES = 8
"""The samples are dealt into so many parts; devices take one each, by turns."""
_HIDDEN = 1024
"""307 KB as float32: an update of the digits travels in chunks, and a power cut can meet it half-way."""
_LEAST_KEEPALIVE_S = 10
_EPOCHS = 1200
_KEPT_VERSIONS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOptions:
    """What the fleet trains, and where boards reach its broker.

    ``artifact`` and ``samples`` (an npz of ``x`` and ``y``) are your own; without them it is the zoo's
    digits. ``listen`` is the address that the broker listens on, ``hosts`` are the names and addresses by
    which boards reach this machine: they stand in the broker's certificate, as ``127.0.0.1`` always does.
    ``epochs`` are what a training takes, None: 1200 passes over the digits, about two seconds on a desktop,
    so that a power cut can meet it, and the usual number with an artifact of your own.
    ``settings`` replaces or adds tables of fleet.toml, ``runtimes`` goes into every agent.toml.
    """

    artifact: Path | None = None
    samples: Path | None = None
    epochs: int | None = None
    codec: str = "float32"
    runtimes: tuple[str, ...] = ("onnx", "numpy")
    flush_after_s: float = 2.0
    listen: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    seed: int = 0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Site:
    """Broker and coordinator of one fleet. ``say`` takes sentences of progress.

    Raises:
        ConfigError: no mosquitto, or samples that the artifact does not take.
        StorageError: ``folder`` holds a fleet already.
    """

    def __init__(
        self, folder: Path, options: SiteOptions | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.options = options or SiteOptions()
        self.folder = folder.absolute()
        self.fleet = self.folder / "fleet"
        """The folder of ``lichen fleet init``."""
        self.say: Callable[[str], None] = say or (lambda sentence: None)
        self.logs_folder = self.folder / "logs"
        mosquitto_program()  # if there is none, nothing is made
        self.port, self._coordinator_port = free_ports(2)
        plan = FleetPlan(
            name=NAME,
            hosts=tuple(dict.fromkeys(("127.0.0.1", *self.options.hosts))),
            port=self.port,
            coordinator_port=self._coordinator_port,
        )
        self._folder = FleetFolder.create(self.fleet, plan)
        for name in ("logs", "samples"):
            (self.folder / name).mkdir(exist_ok=True)
        self.workload = self._make_workload()
        self._write_configuration()
        self._broker = FleetBroker(
            self._folder, self.logs_folder / "mosquitto.log", port=self._coordinator_port
        )
        words = ["lichen", "coordinator", "run", str(self.fleet / "fleet.toml")]
        self._coordinator = self._process("coordinator", [sys.executable, "-m", *words])
        self._next_share = 0
        self._kept_books: dict[str, Path] = {}

    def __enter__(self) -> "Site":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @property
    def broker_url(self) -> str:
        """Where the broker is for whoever is on this machine."""
        return f"mqtts://127.0.0.1:{self.port}"

    @property
    def state(self) -> Path:
        """The coordinator's state folder."""
        return self.fleet / "coordinator"

    # Devices

    def enroll(
        self,
        device: str,
        *,
        broker: str = "",
        state: str = "state",
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """What ``lichen fleet enroll`` makes for a device: its folder, with certificate, key and agent.toml.

        ``broker`` is the URL that this device dials, ``state`` where it keeps its state; ``settings`` adds
        top keys of agent.toml. A device that is enrolled keeps its certificate; agent.toml is written anew.
        """
        folder = self.fleet / "devices" / device
        if device not in self._folder.registry.active:
            folder = self._folder.enroll(device, state=state).path
        path = folder / "agent.toml"
        values = {
            "broker": broker or self.broker_url,
            "state": state,
            "runtimes": list(self.options.runtimes),
            "keepalive_s": _LEAST_KEEPALIVE_S,
            **(settings or {}),
        }
        path.write_text(with_values(path.read_text(), values))
        return folder

    def samples(self, device: str) -> Path:
        """An npz of ``x`` and ``y`` for this device, as ``lichen-agent samples add`` takes it."""
        path = self.folder / "samples" / f"{device}.npz"
        if not path.exists():
            shares = self.workload.shares(_SHARES, scheme="iid", seed=self.options.seed)
            share = shares[self._next_share % _SHARES]
            self._next_share += 1
            np.savez_compressed(path, x=share.x, y=share.y)
        return path

    # The broker

    def start(self) -> None:
        """Start what does not run: broker, and coordinator."""
        self.start_broker()
        self.start_coordinator()

    def start_broker(self) -> None:
        """Start mosquitto unless it runs, and wait until it listens.

        Raises:
            BoardFailure, LichenError: it does not; it has ended.
        """
        if self._broker.running:
            return
        self._broker.start()
        self.until("mosquitto listens", self._broker.listening, within_s=START_S, why=self._broker.last_words)

    def stop_broker(self) -> None:
        """End mosquitto; it keeps nothing."""
        self._broker.stop()

    # The coordinator

    def start_coordinator(self) -> None:
        """Start the coordinator unless it runs, and wait until it is in office.

        Raises:
            BoardFailure: it does not come into office.
        """
        if self._coordinator.running:
            return
        self._coordinator.start()
        self.until(
            "the coordinator is in office",
            lambda: self.status().get("state") == "running" and self.status()["published"] is not None,
            within_s=START_S,
            why=self._coordinator.last_words,
        )

    def kill_coordinator(self) -> None:
        """kill -9 of the coordinator."""
        self._coordinator.kill()

    # What it says

    def status(self) -> dict[str, Any]:
        """The status of the coordinator that runs now; empty before its first."""
        try:
            body: dict[str, Any] = json.loads((self.state / "run" / "status.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return body if body.get("pid") == self._coordinator.pid else {}

    def folded(self) -> int:
        """Updates that are folded into versions, of all devices, as the running coordinator says."""
        return int(self.status().get("updates_folded", 0))

    def under_way(self, device: str) -> int:
        """Updates of this device of which a part has come, and not all: their chunks are on the coordinator's
        disk."""
        store = SqliteStore.open(self.state, read_only=True)
        try:
            return sum(1 for upload in store.uploads() if upload.ranges and upload.device == device)
        finally:
            store.close()

    def versions(self) -> list[dict[str, Any]]:
        """What ``lichen versions --json`` prints."""
        body: list[dict[str, Any]] = self._lichen("versions", str(self.state), "--json")
        return body

    def keep_books(self, device: str, books: Path) -> None:
        """From now on every audit reads the books of this device too, which is gone for good."""
        self._kept_books[device] = books

    def audit(self, *books: Path) -> dict[str, Any]:
        """What ``lichen audit --json`` prints; ``books`` are state folders of agents, or copies of them.
        Without any it is an audit of the coordinator alone."""
        all_of_them = [*books, *self._kept_books.values()] if books else []
        agents = [word for path in all_of_them for word in ("--agents", str(path))]
        body: dict[str, Any] = self._lichen("audit", str(self.state), *agents, "--json")
        return body

    def logs(self) -> str:
        """What broker and coordinator said."""
        return "".join(
            f"--- {process.name}\n{process.last_words(200)}\n"
            for process in (self._broker, self._coordinator)
        )

    def until(
        self, what: str, holds: Callable[[], object], *, within_s: float, why: Callable[[], str] = lambda: ""
    ) -> float:
        """Wait until it holds; see ``Patience.until``. ``what`` is said to whoever waits."""
        return Patience(self.say).until(what, holds, within_s=within_s, why=why)

    def close(self) -> None:
        """End everything."""
        self._coordinator.stop()
        self._broker.stop()

    def _make_workload(self) -> Workload:
        options, folder = self.options, self.fleet / "artifact"
        if options.artifact is not None and options.samples is not None:
            return own_workload(folder, options.artifact, options.samples, seed=options.seed)
        return digits_workload(folder, hidden=_HIDDEN, seed=options.seed, runtimes=("onnx",))

    def _write_configuration(self) -> None:
        held_out: Samples = self.workload.held_out
        np.savez_compressed(self.fleet / "held_out.npz", x=held_out.x, y=held_out.y)
        plan = dict(self.workload.plan)
        epochs = self.options.epochs or (_EPOCHS if self.options.artifact is None else None)
        if epochs is not None:
            plan["epochs"] = epochs
        tables: dict[str, dict[str, Any]] = {
            "plan": plan,
            "update": {"codec": self.options.codec},
            # One device fills no buffer: a version closes when this has passed, with what has come.
            "buffer": {"size": 4, "min_updates": 1, "flush_after_s": self.options.flush_after_s},
            # An audit counts what is kept.
            "retention": {"versions": _KEPT_VERSIONS},
        }
        for name, table in self.options.settings.items():
            tables[name] = {**tables.get(name, {}), **table}
        path = self.fleet / "fleet.toml"
        top = with_values(path.read_text(), {"held_out": "held_out.npz", **tables.pop("", {})})
        path.write_text(f"{top}\n{toml_text(tables)}")
        configuration = self._folder.broker.path / "mosquitto.conf"
        configuration.write_text(
            configuration.read_text().replace(
                f"listener {self.port}\n", f"listener {self.port} {self.options.listen}\n"
            )
        )

    def _process(self, name: str, words: list[str]) -> ManagedProcess:
        return ManagedProcess(name, words, self.logs_folder / f"{name}.log", folder=self.folder)

    def _lichen(self, *words: str) -> Any:
        done = run([sys.executable, "-m", "lichen", *words], within_s=COMMAND_S, folder=self.folder)
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise BoardFailure(
                f"lichen {' '.join(words)} ended with {done.returncode}", hint=done.stderr
            ) from None
