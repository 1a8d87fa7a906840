"""A fleet on this machine: broker, coordinator and agents, each a real process with files of its own.

The demo, the benches and the tests use it. ``prepare`` writes everything into one folder, so that what
happened can be looked at afterwards:

    FOLDER/fleet.toml  artifact/  held_out.npz  coordinator/ (state)  logs/
    FOLDER/devices/dev-00/agent.toml  state/ (outbox, samples, blobs)
"""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from broker_coordinator.embedded_broker import EmbeddedBroker
from edge_agent.samples import SampleStore
from fl_io.ed25519 import new_private_key, public_key_text
from fl_io.mqtt import BrokerAddress, reachable
from fl_protocol.errors import ConfigError
from hil.lineup import Lineup, Seat, draw_up, graphs_for
from hil.processes import ManagedProcess
from hil.toml_text import overlaid, toml_text
from hil.workload import Samples, Workload, own_workload, zoo_workload
from models.runtime import fixed_rows, open_session

__all__ = ["FleetOptions", "LocalFleet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """What the fleet is and does; ``settings`` replaces or adds tables of fleet.toml, ``agent_settings``
    of agent.toml.

    ``data`` is one of ``hil.workload.DATA``; ``artifact`` and ``samples`` (an npz of ``x`` and ``y``) take
    the place of it. ``runtime`` may be ``mixed`` (see ``hil.lineup``). ``epochs``, ``batch_size`` and ``lr``
    are the workload's own where None, ``partition`` too.
    """

    name: str = "demo"
    devices: int = 8
    versions: int = 20
    broker: str = "auto"
    runtime: str = "onnx"
    codec: str = "eden(bits=1)"
    partition: str | None = None
    data: str = "digits"
    artifact: Path | None = None
    samples: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    tflite_python: Path | None = None
    hidden: int = 32
    seed: int = 0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    agent_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


BUFFER_SIZE = 4
MOST_SAMPLE_BYTES = 1 << 40
"""No bound but the disk's: the samples are those that were given."""
FLUSH_AFTER_S = 10.0


class LocalFleet:
    """Processes of one fleet; ``stop`` ends them all, whatever state they are in."""

    def __init__(self, folder: Path, options: FleetOptions) -> None:
        self.folder = folder.absolute()
        self.options = options
        self.state = self.folder / "coordinator"
        self.lineup = Lineup(seats={})
        """Which device trains with what; empty before ``prepare``."""
        self.workload: Workload | None = None
        """What it trains; None before ``prepare``."""
        self.embedded: EmbeddedBroker | None = None
        self.broker_url = options.broker
        self.coordinator = self._process("coordinator", ["lichen", *self._coordinator_words()])
        self.agents: dict[str, ManagedProcess] = {
            f"dev-{number:02d}": self._agent(f"dev-{number:02d}") for number in range(options.devices)
        }

    def prepare(self) -> None:
        """Write artifact, data, keys and configuration.

        Raises:
            LichenError: bad options, samples that do not fit, no such broker, no such runtime here, a full
                disk.
        """
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self.state.mkdir(exist_ok=True)
        workload = self.workload = self._make_workload()
        shares = workload.shares(self.options.devices, scheme=self.options.partition, seed=self.options.seed)
        # Here and now rather than in every agent, whose fleet would wait for them for ever.
        self.lineup = draw_up(
            list(self.agents),
            self.options.runtime,
            workload.artifact,
            tflite_python=self.options.tflite_python,
        )
        self._check_batch()
        workload.check(open_session(workload.artifact)[0])
        held_out = workload.held_out
        np.savez_compressed(self.folder / "held_out.npz", x=held_out.x, y=held_out.y)
        key = new_private_key()
        key_path = self.state / "coordinator.key"
        key_path.touch(mode=0o600)
        key_path.write_bytes(key)
        self._start_broker()
        (self.folder / "fleet.toml").write_text(self._fleet_toml())
        for device, share in zip(self.agents, shares, strict=True):
            self._prepare_device(device, share, public_key_text(key))

    def start(self) -> None:
        """Start the coordinator and all agents."""
        self.coordinator.start()
        for agent in self.agents.values():
            agent.start()

    def stop(self) -> None:
        """End agents, coordinator and broker, in this order."""
        for agent in self.agents.values():
            agent.signal(signal.SIGTERM)
        for agent in self.agents.values():
            agent.stop()
        self.coordinator.stop()
        if self.embedded is not None:
            self.embedded.stop()

    def status(self) -> dict[str, Any]:
        """The coordinator's status, empty before its first."""
        return _read_json(self.state / "run" / "status.json")

    def agent_status(self, device: str) -> dict[str, Any]:
        """One agent's status, empty before its first."""
        return _read_json(self.agent_state(device) / "run" / "status.json")

    def agent_state(self, device: str) -> Path:
        """One agent's state folder."""
        return self.folder / "devices" / device / "state"

    @property
    def agent_states(self) -> list[Path]:
        """The state folders of all agents."""
        return [self.agent_state(device) for device in self.agents]

    @property
    def partition(self) -> str:
        """How the samples are dealt out."""
        return self.workload.scheme(self.options.partition) if self.workload else self.options.partition or ""

    @property
    def broker_name(self) -> str:
        """What serves: name and version of a broker of ours, or the URL of yours, without its password."""
        if self.embedded is not None:
            return self.embedded.name
        return str(BrokerAddress.parse(self.broker_url)) if "://" in self.broker_url else self.broker_url

    def _start_broker(self) -> None:
        if "://" in self.options.broker:
            reachable(BrokerAddress.parse(self.options.broker))
            return
        self.embedded = EmbeddedBroker(self.options.broker, 0, self.folder / "broker")
        self.embedded.start()
        self.broker_url = self.embedded.url

    def _coordinator_words(self) -> list[str]:
        # Its broker is its own, on loopback, or one that was named for a trial.
        return ["coordinator", "run", str(self.folder / "fleet.toml"), "--insecure"]

    def _agent(self, device: str, python: str = sys.executable) -> ManagedProcess:
        configuration = self.folder / "devices" / device / "agent.toml"
        return self._process(device, ["edge_agent", "run", "--config", str(configuration)], python)

    def _process(self, name: str, words: Sequence[str], python: str = sys.executable) -> ManagedProcess:
        log = self.folder / "logs" / f"{name}.log"
        return ManagedProcess(name, [python, "-m", *words], log, folder=self.folder)

    def _make_workload(self) -> Workload:
        options, folder = self.options, self.folder / "artifact"
        if (options.artifact is None) != (options.samples is None):
            raise ConfigError(
                "a model of one's own needs samples, and these a model",
                hint="give both --artifact DIR and --samples FILE.npz, or neither",
            )
        if options.artifact is not None and options.samples is not None:
            return own_workload(folder, options.artifact, options.samples, seed=options.seed)
        graphs = graphs_for(options.runtime)
        return zoo_workload(options.data, folder, hidden=options.hidden, seed=options.seed, runtimes=graphs)

    def _plan(self) -> dict[str, Any]:
        options = self.options
        asked = {"epochs": options.epochs, "batch_size": options.batch_size, "lr": options.lr}
        plan = {**(self.workload.plan if self.workload else {})}
        if self._rows is not None and "batch_size" in plan:
            plan["batch_size"] = min(plan["batch_size"], self._rows)
        return plan | {name: value for name, value in asked.items() if value is not None}

    @property
    def _rows(self) -> int | None:
        """The longest batch that the coordinator takes."""
        return fixed_rows(self.workload.artifact) if self.workload else None

    def _check_batch(self) -> None:
        most, asked = self._rows, self.options.batch_size
        if most is not None and asked is not None and asked > most:
            raise ConfigError(
                f"a batch of {asked} rows, the .tflite graphs take {most}",
                hint=f"--batch-size {most}, or build the artifact with --batch {asked}",
            )

    def _prepare_device(self, device: str, share: Samples, trusted_key: str) -> None:
        seat = self.lineup.seats.get(device, Seat(runtime=self.options.runtime))
        self.agents[device] = self._agent(device, seat.python)
        state = self.agent_state(device)
        state.mkdir(parents=True, exist_ok=True)
        with SampleStore(
            state / "samples.db", max_samples=len(share), max_bytes=MOST_SAMPLE_BYTES
        ) as samples:
            samples.extend(share.x, share.y)
        tables: dict[str, Mapping[str, Any]] = {
            "": {
                "device": device,
                "fleet": self.options.name,
                "broker": self.broker_url,
                "state": "state",
                "trusted_keys": [trusted_key],
                "runtimes": [seat.runtime],
            },
        }
        (state.parent / "agent.toml").write_text(toml_text(overlaid(tables, self.options.agent_settings)))

    def _fleet_toml(self) -> str:
        top = {
            "fleet": self.options.name,
            "state": "coordinator",
            "broker": self.broker_url,
            "artifact": "artifact",
            "held_out": "held_out.npz",
            "stop_after_versions": self.options.versions,
        }
        # Half the fleet fills a buffer: whoever is late joins the next version, and nobody is waited for.
        size = max(1, min(BUFFER_SIZE, self.options.devices // 2))
        tables: dict[str, Mapping[str, Any]] = {
            "": top,
            "update": {"codec": self.options.codec},
            "plan": self._plan(),
            "buffer": {"size": size, "flush_after_s": FLUSH_AFTER_S},
        }
        return toml_text(overlaid(tables, self.options.settings))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return body
