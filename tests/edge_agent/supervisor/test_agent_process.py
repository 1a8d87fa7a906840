"""The agent as a process: ``lichen-agent run`` with a real broker, real signatures, real training."""

import json
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fl_io.broker_address import BrokerAddress
from fl_io.ed25519 import new_private_key, public_key_text, signer
from fl_io.mqtt import MqttTransport
from fl_protocol.blob import BlobRef
from fl_protocol.codec import codec_for, codec_seed, decode, encode_model
from fl_protocol.command import Command
from fl_protocol.plan import TrainingPlan
from fl_protocol.presence import CoordinatorPresence, DevicePresence
from fl_protocol.receipt import Receipt
from fl_protocol.signed import COMMAND_CONTEXT, TASK_CONTEXT, seal
from fl_protocol.task import Pacing, TaskManifest
from fl_protocol.topics import BeginTopic, DeviceTopic, FleetTopics, blob_name
from fl_protocol.transport import Connected, Received
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId
from models.zoo import digits

pytestmark = pytest.mark.process

DEVICE, FLEET = "pi-07", "demo"
TIMEOUT_S = 60.0
FOREIGN = ("numpy", "_rust", "asyncio", "onnx", "cryptography")
"""Shared objects that must not be mapped into the supervisor."""


class Coordinator:
    """As much of a coordinator as one device needs, over a real broker."""

    def __init__(self, url: str, artifact, *, codec: str = "eden(bits=1)") -> None:
        self.key = new_private_key()
        self.artifact = artifact
        self.codec = codec
        self.topics = FleetTopics(FLEET)
        self.events: queue.Queue = queue.Queue()
        self.transport = MqttTransport(BrokerAddress.parse(url), "coordinator", window=64)
        self.transport.start(self.events.put)
        self.await_event(lambda event: isinstance(event, Connected))
        self.transport.subscribe(self.topics.coordinator_filters())
        self.counter = 0
        files = [artifact.read(name) for name in artifact.manifest.files if name != "weights.bin"]
        for content in files:
            self.publish_blob(content)

    def await_event(self, wanted):
        """The next event that is ``wanted``; others are dropped."""
        ends = time.monotonic() + TIMEOUT_S
        while True:
            event = self.events.get(timeout=max(ends - time.monotonic(), 0.01))
            if wanted(event):
                return event

    def await_message(self, kind):
        """Topic and message of the next message whose parsed topic ``kind`` accepts."""

        def wanted(event):
            return isinstance(event, Received) and kind(self.topics.parse(event.topic))

        event = self.await_event(wanted)
        return self.topics.parse(event.topic), event.payload

    def publish(self, topic, payload, *, retain=False) -> None:
        assert self.transport.publish(topic, payload, retain=retain) is not None

    def publish_blob(self, content: bytes) -> BlobRef:
        ref = BlobRef.of(content)
        for index in range(ref.chunk_count):
            start, end = ref.chunk_range(index)
            topic = self.topics.blob(blob_name(ref.address, ref.chunk_bytes), index)
            self.publish(topic, content[start:end], retain=True)
        return ref

    def publish_version(self, number: int) -> TaskManifest:
        self.counter += 1
        weights = self.artifact.initial_weights() + np.float32(0.001 * number)
        manifest = TaskManifest(
            fleet=FLEET,
            task="main",
            counter=self.counter,
            term=1,
            version=VersionId(epoch=1, number=number, digest=bytes([number]) * 16),
            artifact=self.publish_blob(self.artifact.manifest_json),
            weights=self.publish_blob(encode_model(weights, self.artifact.layout)),
            fingerprint=self.artifact.layout.fingerprint,
            plan=TrainingPlan(epochs=1, batch_size=16, lr=0.1),
            codec=self.codec,
            pacing=Pacing(),
        )
        envelope = seal(TASK_CONTEXT, manifest.pack(), signer(self.key))
        self.publish(self.topics.task(), envelope, retain=True)
        presence = CoordinatorPresence(session=bytes(8), epoch=1, term=1, marker=bytes([number]) * 32)
        self.publish(self.topics.coordinator, presence.pack(), retain=True)
        return manifest

    def next_update(self) -> tuple[bytes, UpdateHeader, bytes | None]:
        topic, body = self.await_message(lambda topic: isinstance(topic, BeginTopic))
        return topic.update_id, *UpdateHeader.unpack(body)

    def command(self, kind: str, sequence: int) -> None:
        body = Command(kind=kind, device=DEVICE, term=1, sequence=sequence).pack()
        envelope = seal(COMMAND_CONTEXT, body, signer(self.key))
        self.publish(self.topics.command(DEVICE), envelope)

    def accept(self, update_id: bytes) -> None:
        done = Receipt(state="done", epoch=1, term=1)
        self.publish(self.topics.receipt(DEVICE, update_id), done.pack())

    def close(self) -> None:
        """Take all retained messages away, for the next test of the same broker."""
        self.transport.stop()


class AgentProcess:
    """``python -m edge_agent run`` with a configuration of its own."""

    def __init__(self, folder, url: str, key: str, **settings) -> None:
        self.folder = folder
        self.config = folder / "agent.toml"
        lines = [f'device = "{DEVICE}"', f'fleet = "{FLEET}"', f'broker = "{url}"', 'state = "state"']
        lines += [f'trusted_keys = ["{key}"]', *(f"{name} = {value}" for name, value in settings.items())]
        self.config.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen | None = None

    def command(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run another command of this device."""
        return subprocess.run(
            [sys.executable, "-m", "edge_agent", *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config)], stderr=log
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def status(self) -> dict:
        return json.loads((self.folder / "state" / "run" / "status.json").read_text())

    def await_status(self, wanted) -> dict:
        """Poll until the status is as ``wanted``: it is a file, there is nothing to wait on."""
        ends = time.monotonic() + TIMEOUT_S
        while time.monotonic() < ends:
            try:
                status = self.status()
            except (OSError, ValueError):
                status = {}
            if status and wanted(status):
                return status
            time.sleep(0.05)
        raise AssertionError(f"not within {TIMEOUT_S} s: {status} {(self.folder / 'log').read_text()}")

    def mapped(self) -> str:
        return Path(f"/proc/{self.process.pid}/maps").read_text()


@pytest.fixture
def coordinator(broker_of, artifact):
    """A coordinator on mosquitto."""
    coordinator = Coordinator(broker_of("mosquitto").url, artifact)
    yield coordinator
    coordinator.close()


@pytest.fixture
def agent(broker_of, coordinator, tmp_path):
    """A device with 200 digits that trusts the coordinator; not started."""
    agent = AgentProcess(
        tmp_path, broker_of("mosquitto").url, public_key_text(coordinator.key), runtimes='["numpy"]'
    )
    images = digits.load()
    np.savez(tmp_path / "some.npz", x=images.x[:200], y=images.y[:200])
    added = agent.command("samples", "add", str(tmp_path / "some.npz"), "--json")
    assert json.loads(added.stdout)["added"] == 200, added.stderr
    yield agent
    if agent.process is not None and agent.process.poll() is None:
        agent.stop()


def test_a_device_trains_for_real_and_its_supervisor_stays_small(agent, coordinator, artifact):
    """Five versions: every update decodes; at most 800 bytes up each, all included; 30 MiB at most."""
    agent.start()
    versions = 5
    for number in range(1, versions + 1):
        task = coordinator.publish_version(number)
        update_id, header, payload = coordinator.next_update()
        assert header.base == task.version
        codec = codec_for(header.codec)
        codec.check(payload, artifact.layout)
        assert np.isfinite(decode(codec, payload, artifact.layout, codec_seed(update_id))).all()
        assert header.metrics["before.count"] == header.metrics["after.count"] > 0
        coordinator.accept(update_id)
        status = agent.await_status(lambda status, number=number: status["updates"]["done"] == number)
    status = agent.await_status(lambda status: status["state"] == "waiting")
    assert status["bytes_sent"] / versions <= 800 + 1000 / versions
    assert status["outbox"]["count"] == 0
    assert status["runtime"] == "numpy"
    names = {line.rpartition("/")[2] for line in agent.mapped().splitlines() if ".so" in line}
    assert not [name for name in names if any(foreign in name for foreign in FOREIGN)]
    rss = psutil.Process(agent.process.pid).memory_info().rss
    assert rss <= 30 << 20
    assert agent.stop() == 0
    shown = json.loads(agent.command("status", "--json").stdout)
    assert (shown["running"], shown["state"], shown["updates"]["done"]) == (False, "stopped", versions)


def test_a_device_killed_after_its_puback_does_not_send_twice(agent, coordinator):
    """kill -9 before the receipt: the next life probes, the coordinator answers done, all is settled."""
    agent.start()
    coordinator.publish_version(1)
    update_id, _, payload = coordinator.next_update()
    assert payload is not None
    agent.await_status(lambda status: status["state"] == "uploading")
    agent.process.kill()
    agent.process.wait(10)
    agent.start()
    again, _, nothing = coordinator.next_update()
    assert (again, nothing) == (update_id, None)
    coordinator.accept(update_id)
    status = agent.await_status(lambda status: status["updates"]["done"] == 1)
    assert status["updates"]["created"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_clean(agent, coordinator, number):
    """Exit code 0, a farewell instead of a will, and no process left."""
    agent.start()
    agent.await_status(lambda status: status["connected"])
    coordinator.publish_version(1)
    agent.await_status(lambda status: status["worker"]["pid"])
    children = psutil.Process(agent.process.pid).children(recursive=True)
    assert agent.stop(number) == 0
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)

    def is_state(topic):
        return topic == DeviceTopic("state", DEVICE)

    _, birth = coordinator.await_message(is_state)
    _, farewell = coordinator.await_message(is_state)
    assert DevicePresence.unpack(birth).session == DevicePresence.unpack(farewell).session
    assert not DevicePresence.unpack(farewell).online


def test_check_says_what_is_ready_and_what_is_not(agent, coordinator):
    """Before the first task: reading fails with a hint; with one, everything is ok."""
    coordinator.publish_version(1)
    checked = agent.command("check", "--json")
    report = json.loads(checked.stdout)
    assert checked.returncode == 0, checked.stdout
    names = [finding["name"] for finding in report["checks"]]
    assert {"clock", "disk", "samples", "runtime", "topics: write", "topics: read"} <= set(names)
    agent.config.write_text(
        agent.config.read_text().replace('broker = "mqtt://', 'broker = "mqtt://nowhere.invalid:1/#')
    )
    checked = agent.command("check")
    assert checked.returncode == 1
    assert "FAIL" in checked.stdout


def test_a_second_agent_of_one_state_folder_ends_with_a_reason(agent, coordinator):
    """It names the process that holds it, exit code 1."""
    agent.start()
    agent.await_status(lambda status: status["connected"])
    second = agent.command("run")
    assert second.returncode == 1
    assert str(agent.process.pid) in second.stderr
    assert second.stderr.startswith("error: ") or "error: " in second.stderr


_STEADY = """
import time
from pathlib import Path
import numpy as np
import lichen
class Steady:
    checkpoint = None
    def evaluate(self, weights, samples): return {}
    def train(self, weights, samples, plan, should_stop):
        saved = self.checkpoint.resume()
        here, steps = Path(__file__).parent, saved[0] if saved else 0
        while not (here / "go").exists() and not should_stop():
            steps += 1
            self.checkpoint.offer(steps, lambda: {"steps": np.array(steps)})
            (here / "begun").touch()
            time.sleep(0.01)
        (here / "steps").open("a").write(f"{steps}\\n")
        return lichen.TrainingResult(weights, steps=max(steps, 1))
"""


def test_a_pause_does_not_wait_for_the_training_it_ends(agent, coordinator):
    """The command is checked by a process of its own; after `resume` the training goes on where it was."""
    (agent.folder / "steady.py").write_text(_STEADY)
    settings = 'trainer = "steady:Steady"\nworker = { checkpoint_every_s = 0.001 }\n'
    agent.config.write_text(agent.config.read_text() + settings)
    agent.start()
    coordinator.publish_version(1)
    agent.await_status(lambda status: status["state"] == "training" and (agent.folder / "begun").exists())
    coordinator.command("pause", 1)
    status = agent.await_status(lambda status: status["state"] == "waiting")
    assert status["idle_reason"] == "paused by the coordinator"
    assert status["updates"]["created"] == 0
    (agent.folder / "go").touch()
    coordinator.command("resume", 2)
    coordinator.next_update()
    first, second = map(int, (agent.folder / "steps").read_text().split())
    assert first == second > 0
    assert agent.stop() == 0
