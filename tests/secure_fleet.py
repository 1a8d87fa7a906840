"""A fleet with certificates, as its operator has it, on a real mosquitto."""

import datetime
import json
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fl_io.mqtt import BrokerAddress, MqttTransport, TlsFiles
from fl_protocol.transport import Connected, Delivered, Disconnected, Received
from hil.mosquitto import free_ports, mosquitto_program
from hil.processes import ManagedProcess

if TYPE_CHECKING:  # every test loads this module; few need what is heavy
    from broker_coordinator.books.audit import AuditReport
    from broker_coordinator.fleet.authority import Authority
    from hil.workload import Workload

__all__ = ["Client", "SecureFleet", "mosquitto_program"]

PATIENCE_S = 60.0


class Client:
    """An MQTT client that keeps what it hears; ``files`` are its credential."""

    def __init__(self, port: int, name: str, files: TlsFiles, host: str = "127.0.0.1") -> None:
        self._events: queue.Queue = queue.Queue()
        self._unread: deque = deque()
        self.transport = MqttTransport(
            BrokerAddress.parse(f"mqtts://{host}:{port}"), name, keepalive_s=60, tls=files
        )
        self.transport.start(self._events.put)

    def next(self, *kinds: type) -> object:
        """The next event of these kinds."""
        while True:
            event = self._unread.popleft() if self._unread else self._events.get(timeout=PATIENCE_S)
            if isinstance(event, kinds):
                return event

    @property
    def admitted(self) -> bool:
        """Whether the broker takes it, as the first thing it says shows."""
        return isinstance(self.next(Connected, Disconnected), Connected)

    def connect(self) -> "Client":
        """Wait for the connection."""
        assert self.admitted
        return self

    def heard_until(self, fence: str) -> list[Received]:
        """All messages before the one on topic ``fence``."""
        heard: list[Received] = []
        while (message := self.next(Received)).topic != fence:
            heard.append(message)
        return heard

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish, and wait until the broker has acknowledged it, granted or not."""
        token = self.transport.publish(topic, payload, retain=retain)
        assert token is not None
        while (
            not isinstance(event := self._events.get(timeout=PATIENCE_S), Delivered) or event.token != token
        ):
            self._unread.append(event)


class SecureFleet:
    """Fleet ``barn``: its folder, its mosquitto, its coordinator and its agents, as an operator has them."""

    def __init__(self, folder: Path) -> None:
        from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
        from hil.fleet_broker import FleetBroker

        self.port, self.coordinator_port = free_ports(2)
        plan = FleetPlan(
            name="barn", hosts=("127.0.0.1",), port=self.port, coordinator_port=self.coordinator_port
        )
        self.path = folder / "barn"
        self.fleet = FleetFolder.create(self.path, plan)
        self.folder = folder
        self.mosquitto: ManagedProcess = FleetBroker(
            self.fleet, folder / "mosquitto.log", port=self.coordinator_port
        )
        self.processes: dict[str, ManagedProcess] = {}
        self.clients: list[Client] = []

    @cached_property
    def workload(self) -> "Workload":
        """What it trains; made at first use, into the place where ``fleet.toml`` looks for it."""
        from hil.workload import digits_workload

        return digits_workload(self.path / "artifact", hidden=8, seed=0, runtimes=("onnx",))

    def start_broker(self) -> None:
        """Start mosquitto, and wait until it listens."""
        self.mosquitto.start()
        ends = time.monotonic() + PATIENCE_S
        while not self.fleet.broker.pid_file.exists():
            assert self.mosquitto.running, self.mosquitto.last_words()
            assert time.monotonic() < ends
            time.sleep(0.02)

    def coordinate(self, *words: str, settings: str = "[buffer]\nsize = 2\n") -> ManagedProcess:
        """Start the coordinator and wait until it is in office."""
        assert self.workload is not None
        toml = self.path / "fleet.toml"
        toml.write_text(f"{toml.read_text()}\n{settings}")
        process = self._start("coordinator", ["lichen", "coordinator", "run", str(toml), *words])
        self.until(lambda: self.status().get("state") == "running" and self.status()["published"] is not None)
        return process

    def enroll(self, device: str, share: int = 0) -> Path:
        """What ``lichen fleet enroll`` puts onto a device, and samples to train on."""
        from edge_agent.samples import SampleStore

        folder = self.fleet.enroll(device).path
        configuration = folder / "agent.toml"
        if "runtimes" not in configuration.read_text():
            configuration.write_text('runtimes = ["numpy"]\n' + configuration.read_text())
        (folder / "state").mkdir(exist_ok=True)
        part = self.workload.shares(4, scheme="iid", seed=0)[share]
        with SampleStore(folder / "state" / "samples.db") as samples:
            samples.extend(part.x, part.y)
        return folder

    def agent(self, folder: Path, name: str = "") -> ManagedProcess:
        """Start the agent of such a folder."""
        words = ["edge_agent", "run", "--config", str(folder / "agent.toml")]
        return self._start(name or folder.name, words)

    def client(
        self, files: TlsFiles, name: str = "client", *, port: int | None = None, host: str = "127.0.0.1"
    ) -> Client:
        """A client with a credential of its own."""
        self.clients.append(Client(port or self.port, name, files, host))
        return self.clients[-1]

    def device(self, device: str, name: str = "") -> Client:
        """A client with an enrolled device's credential, under a client id of its choice."""
        return self.client(self.files(device), name or device).connect()

    def insider(self) -> Client:
        """A client with the coordinator's own credential towards the broker."""
        private = self.path / "private"
        files = TlsFiles(
            ca=self.path / "ca.pem",
            certificate=private / "coordinator-tls.pem",
            key=private / "coordinator-tls.key",
        )
        return self.client(files, "insider", port=self.coordinator_port).connect()

    def files(self, device: str) -> TlsFiles:
        """An enrolled device's credential."""
        folder = self.path / "devices" / device
        return TlsFiles(ca=folder / "ca.pem", certificate=folder / "device.pem", key=folder / "device.key")

    def issued(self, name: str, authority: "Authority", until: datetime.datetime) -> TlsFiles:
        """A credential that an authority issued without telling anybody."""
        issued = authority.issue_client(name, until)
        stem = self.folder / secrets.token_hex(4)
        certificate, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        certificate.write_bytes(issued.certificate)
        key.write_bytes(issued.key)
        return TlsFiles(ca=self.path / "ca.pem", certificate=certificate, key=key)

    def issued_copy(self, device: str) -> TlsFiles:
        """A copy of a device's credential, as a thief has it."""
        files = self.files(device)
        copy = self.folder / secrets.token_hex(4)
        copy.mkdir()
        pair = [Path(shutil.copy(path, copy)) for path in (files.certificate, files.key)]
        return TlsFiles(ca=files.ca, certificate=pair[0], key=pair[1])

    def status(self) -> dict:
        """The coordinator's status."""
        return _json(self.path / "coordinator" / "run" / "status.json")

    def agent_status(self, device: str) -> dict:
        """An agent's status."""
        return _json(self.path / "devices" / device / "state" / "run" / "status.json")

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until it holds; polls, as status files send no event."""
        ends = time.monotonic() + PATIENCE_S
        while not holds():
            for process in self.processes.values():
                assert process.running or process.exit_code == 0, process.last_words()
            assert time.monotonic() < ends, "".join(p.last_words() for p in self.processes.values())
            time.sleep(0.05)

    def lichen(self, *words: str) -> str:
        """Run an operator's command, which must go well; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "lichen", *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=self.path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def books(self, *devices: str) -> "AuditReport":
        """The audit, which must balance."""
        from broker_coordinator.books.audit import audit

        states = [self.path / "devices" / device / "state" for device in devices]
        report = audit(self.path / "coordinator", states)
        assert report.balanced, report.faults
        assert (report.lost, report.duplicated, report.replay_ok) == (0, 0, True)
        return report

    def hang_up(self) -> None:
        """End all clients."""
        for client in self.clients:
            client.transport.stop()
        self.clients.clear()

    def stop(self) -> None:
        """End everything."""
        self.hang_up()
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        for process in (*self.processes.values(), self.mosquitto):
            process.stop()

    def _start(self, name: str, words: list[str]) -> ManagedProcess:
        process = ManagedProcess(
            name, [sys.executable, "-m", *words], self.folder / f"{name}.log", folder=self.folder
        )
        process.start()
        self.processes[name] = process
        return process


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
