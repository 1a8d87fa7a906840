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
from numpy.typing import NDArray

from broker_coordinator.embedded_broker import EmbeddedBroker
from edge_agent.samples import SampleStore
from fl_io.ed25519 import new_private_key, public_key_text
from fl_io.mqtt import BrokerAddress, reachable
from hil.partition import partition
from hil.processes import ManagedProcess
from models.runtime import open_session
from models.zoo import digits
from models.zoo.mlp import digits_artifact

__all__ = ["FleetOptions", "LocalFleet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """What the fleet is and does; ``settings`` replaces or adds tables of fleet.toml, ``agent_settings``
    of agent.toml."""

    name: str = "demo"
    devices: int = 8
    versions: int = 20
    broker: str = "auto"
    runtime: str = "onnx"
    codec: str = "eden(bits=1)"
    partition: str = "dirichlet:1.0"
    hidden: int = 32
    seed: int = 0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    agent_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# Six passes in batches of 16 at 0.3: what ten seeds reach with it stands in docs/benchmarks.md.
DIGITS_PLAN: Mapping[str, Any] = {"epochs": 6, "batch_size": 16, "lr": 0.3}
BUFFER_SIZE = 4
FLUSH_AFTER_S = 10.0


class LocalFleet:
    """Processes of one fleet; ``stop`` ends them all, whatever state they are in."""

    def __init__(self, folder: Path, options: FleetOptions) -> None:
        self.folder = folder.absolute()
        self.options = options
        self.state = self.folder / "coordinator"
        self.embedded: EmbeddedBroker | None = None
        self.broker_url = options.broker
        self.coordinator = self._process("coordinator", ["lichen", *self._coordinator_words()])
        self.agents: dict[str, ManagedProcess] = {
            f"dev-{number:02d}": self._agent(f"dev-{number:02d}") for number in range(options.devices)
        }

    def prepare(self) -> None:
        """Write artifact, data, keys and configuration.

        Raises:
            LichenError: bad options, no such broker, no such runtime here, a full disk.
        """
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self.state.mkdir(exist_ok=True)
        artifact = digits_artifact(
            self.folder / "artifact",
            hidden=self.options.hidden,
            seed=self.options.seed,
            runtimes=("onnx", "tflite") if self.options.runtime == "litert" else ("onnx",),
        )
        # Here and now rather than in every agent, whose fleet would wait for them for ever.
        open_session(artifact, (self.options.runtime,))
        train, held_out = digits.split(seed=self.options.seed)
        np.savez_compressed(self.folder / "held_out.npz", x=held_out.x, y=held_out.y)
        key = new_private_key()
        key_path = self.state / "coordinator.key"
        key_path.touch(mode=0o600)
        key_path.write_bytes(key)
        self._start_broker()
        (self.folder / "fleet.toml").write_text(self._fleet_toml())
        parts = partition(
            train.y, self.options.devices, scheme=self.options.partition, seed=self.options.seed
        )
        for device, part in zip(self.agents, parts, strict=True):
            self._prepare_device(device, train.x[part], train.y[part], public_key_text(key))

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
        return ["coordinator", "run", str(self.folder / "fleet.toml")]

    def _agent(self, device: str) -> ManagedProcess:
        configuration = self.folder / "devices" / device / "agent.toml"
        return self._process(device, ["edge_agent", "run", "--config", str(configuration)])

    def _process(self, name: str, words: Sequence[str]) -> ManagedProcess:
        log = self.folder / "logs" / f"{name}.log"
        return ManagedProcess(name, [sys.executable, "-m", *words], log, folder=self.folder)

    def _prepare_device(
        self, device: str, x: NDArray[np.float32], y: NDArray[np.int32], trusted_key: str
    ) -> None:
        state = self.agent_state(device)
        state.mkdir(parents=True, exist_ok=True)
        with SampleStore(state / "samples.db") as samples:
            samples.extend(x, y)
        tables: dict[str, Mapping[str, Any]] = {
            "": {
                "device": device,
                "fleet": self.options.name,
                "broker": self.broker_url,
                "state": "state",
                "trusted_keys": [trusted_key],
                "runtimes": [self.options.runtime],
            },
            **self.options.agent_settings,
        }
        (state.parent / "agent.toml").write_text(_toml(tables))

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
            "plan": DIGITS_PLAN,
            "buffer": {"size": size, "flush_after_s": FLUSH_AFTER_S},
        }
        for name, table in self.options.settings.items():
            tables[name] = {**tables.get(name, {}), **table}
        return _toml(tables)


def _toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]"] if name else []
        # JSON's texts, numbers, booleans and lists are TOML's too.
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return body
