"""The coordinator as a process, on real brokers."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from click.testing import CliRunner

from broker_coordinator import command, service
from broker_coordinator.configuration import read_fleet
from broker_coordinator.metrics import Figures
from broker_coordinator.office import challenge, locked
from broker_coordinator.service import is_running, read_status
from fl_io.clock import SystemClock
from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_io.watchdog import Notifier, Watchdog
from fl_protocol.errors import ConfigError, LichenError, StorageError, TransportError
from fl_protocol.presence import CoordinatorPresence
from fl_protocol.topics import FleetTopics
from fl_protocol.transport import Connected, Received
from models.zoo import digits
from models.zoo.catalogue import CATALOGUE

PATIENCE_S = 30.0


def wait_for(condition):
    """Until it holds; polls, as the file it looks at sends no event."""
    until = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


class Process:
    """``lichen coordinator run`` on a folder; what it says is kept."""

    def __init__(self, folder, number, *words):
        self.folder = folder
        self.state = folder / "state"
        self._log = folder / f"log{number}"
        arguments = [sys.executable, "-m", "lichen", "coordinator", "run", str(folder / "fleet.toml"), *words]
        with self._log.open("w") as log:
            self.child = subprocess.Popen(arguments, stderr=log)

    @property
    def said(self):
        return self._log.read_text()

    def running(self):
        """Its status, once it is connected."""

        def look():
            assert self.child.poll() is None, self.said
            try:
                status = read_status(self.state)
            except LichenError:
                return None
            return status if status["pid"] == self.child.pid and status["state"] == "running" else None

        return wait_for(look)

    def wait(self):
        """Its exit code, when it ends."""
        return self.child.wait(PATIENCE_S)

    def end(self, number=signal.SIGTERM):
        """End it; its exit code."""
        self.child.send_signal(number)
        return self.wait()


@pytest.fixture
def folder(tmp_path, artifact):
    """A fleet's folder, with a held-out file."""
    _, held_out = digits.split()
    np.savez(tmp_path / "held_out.npz", x=held_out.x, y=held_out.y)
    (tmp_path / "fleet.toml").write_text(
        f'fleet = "lab"\nstate = "state"\nartifact = "{artifact.path}"\nheld_out = "held_out.npz"\n'
        '[update]\ncodec = "eden(bits=1)"\n[buffer]\nsize = 2\n'
    )
    return tmp_path


@pytest.fixture
def start(folder):
    """Start coordinators; they are killed at the end."""
    made = []

    def begin(*words):
        made.append(Process(folder, len(made), *words))
        return made[-1]

    yield begin
    for process in made:
        process.child.kill()
        process.child.wait()


@pytest.fixture
def device_on(scripted_device):
    """Connect scripted devices over real MQTT."""
    made = []

    def connect(url, name):
        device = scripted_device(name, MqttTransport(BrokerAddress.parse(url), name))
        made.append(device)
        device.start()
        wait_for(lambda: device.manifests)
        return device

    yield connect
    for device in made:
        device.transport.stop()


def test_a_batch_that_tflite_graphs_do_not_take_is_refused_at_the_start(tmp_path):
    """Else every device that trains with them would fail, and none of the others."""
    artifact = next(model for model in CATALOGUE if model.name == "digits-mlp").open()
    (tmp_path / "fleet.toml").write_text(
        f'fleet = "lab"\nstate = "state"\nartifact = "{artifact.path}"\n[plan]\nbatch_size = 33\n'
    )
    with pytest.raises(ConfigError, match=r"batch_size is 33; the \.tflite .* take 32") as refused:
        service.run_coordinator(read_fleet(tmp_path / "fleet.toml"))
    assert "batch_size = 32 or less" in refused.value.hint


def run(*words):
    """A ``lichen`` word in this process: exit code and output."""
    result = CliRunner().invoke(getattr(command, words[0]), [str(word) for word in words[1:]])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.process
def test_a_fleet_trains_over_a_real_broker(start, broker, device_on, artifact):
    """Versions close, are evaluated and published; kill -9 in between; every command tells the same."""
    process = start("--broker", broker, "--insecure")
    assert process.running()["insecure"]
    assert "insecure: no TLS" in process.said
    devices = [device_on(broker, f"d{number}") for number in range(2)]
    for device in devices:
        device.birth()
    for number in (1, 2):
        updates = [(device, device.make(artifact.layout, salt=broker)) for device in devices]
        for device, update in updates:
            device.begin(*update)
        for device, update in updates:
            wait_for(lambda device=device, update=update: "done" in device.words(update[0]))
        wait_for(lambda number=number: devices[0].manifest.version.number == number)
        if number == 1:
            assert process.end(signal.SIGKILL) == -signal.SIGKILL
            process = start("--broker", broker, "--insecure")
            assert process.running()["term"] == 2
    status = wait_for(lambda: (s := read_status(process.state))["accuracy_version"] == 2 and s)
    assert (status["version"], status["updates_accepted"], status["accuracy_examples"]) == (2, 4, 360)
    assert status["bytes"] > 0

    page = urllib.request.urlopen(f"{status['http']}/metrics", timeout=10).read().decode()
    assert "lichen_version 2.0" in page
    assert "lichen_updates_accepted_total 4.0" in page
    assert urllib.request.urlopen(f"{status['http']}/healthz", timeout=10).status == 200

    listed = json.loads(run("versions", process.state, "--json")[1])
    assert [v["number"] for v in listed] == [0, 1, 2]
    assert listed[2]["coordinator"]["accuracy"] == status["accuracy"]
    assert [d["accepted"] for d in json.loads(run("devices", process.state, "--json")[1])] == [2, 2]
    code, output = run("audit", process.state, "--json")
    assert (code, json.loads(output)["balanced"], json.loads(output)["versions_ok"]) == (0, True, 2)
    out = process.folder / "weights.npz"
    assert run("export", process.state, "--version", 2, "--out", out, "--published")[0] == 0
    with np.load(out) as weights:
        assert sum(weights[name].size for name in weights.files) == artifact.layout.size
    assert run("backup", process.state, "--out", process.folder / "backup")[0] == 0
    for word in ("status", "devices", "versions", "audit"):
        code, output = run(word, process.state)
        assert code == 0
        assert output.strip()
    assert process.end() == 0
    assert "version 2 from 2 updates" in process.said
    assert not is_running(process.state)


@pytest.mark.process
def test_it_runs_its_own_broker_and_stops_at_a_version(start, device_on, artifact):
    """``--broker auto``; the key is made and told; the last version ends it with exit code 0."""
    process = start("--broker", "auto", "--stop-after-versions", "1")
    status = process.running()
    assert not status["insecure"]
    url = status["broker"].split(" on ")[1]
    devices = [device_on(url, f"d{number}") for number in range(2)]
    for device in devices:
        device.begin(*device.make(artifact.layout))
    assert process.wait() == 0
    assert f'trusted_keys = ["{(process.state / "coordinator.pub").read_text().strip()}"]' in process.said
    status = read_status(process.state)
    assert (status["version"], status["published"], status["accuracy_version"]) == (1, 1, 1)


@pytest.mark.process
def test_a_second_coordinator_is_refused(start, broker, folder, artifact):
    """On the same state by the lock, which names the process; on another one by the challenge."""
    process = start("--broker", broker, "--insecure")
    process.running()
    second = start("--broker", broker, "--insecure")
    assert second.wait() == 1
    assert f"in use by process {process.child.pid}" in second.said
    with pytest.raises(TransportError, match="another coordinator of fleet 'lab' is running"):
        challenge(BrokerAddress.parse(broker), "lab")
    challenge(BrokerAddress.parse(broker), "another-fleet")
    with pytest.raises(StorageError, match="in use by process"):
        run("coordinator", "recover", folder / "fleet.toml")


@pytest.mark.process
def test_it_refills_a_broker_that_was_killed(start, tmp_path, artifact, device_on):
    """The broker comes back with an empty store: the coordinator publishes everything again by itself."""
    from broker_coordinator.embedded_broker import EmbeddedBroker

    with EmbeddedBroker("auto", 0, tmp_path / "broker") as broker:
        start("--broker", broker.url, "--insecure").running()
        device_on(broker.url, "d1")
        broker.kill()
        broker.start()
        late = device_on(broker.url, "late")
        assert late.manifest.version.number == 0


def test_a_bad_configuration_and_a_missing_broker_say_so(folder):
    """Exit 78 with every fault; exit 1 with the reason, and no state is begun."""
    (folder / "fleet.toml").write_text('fleet = "lab"\nstat = "x"\n')
    words = [sys.executable, "-m", "lichen", "coordinator", "run", str(folder / "fleet.toml")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert "unknown key, did you mean 'state'" in done.stderr
    assert "artifact: missing" in done.stderr


def test_no_broker_is_said_with_its_address(folder):
    """Nobody listens there."""
    words = [sys.executable, "-m", "lichen", "coordinator", "run", str(folder / "fleet.toml")]
    done = subprocess.run(
        [*words, "--broker", "mqtt://127.0.0.1:1", "--insecure"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("broker_url", ["mqtt://127.0.0.1:1883", "ws://broker.example:9001/mqtt"])
def test_a_broker_without_tls_is_refused_with_the_remedy(folder, broker_url):
    """Wherever it is: what a coordinator reaches on loopback, devices may reach from elsewhere."""
    words = [sys.executable, "-m", "lichen", "coordinator", "run", str(folder / "fleet.toml")]
    done = subprocess.run(
        [*words, "--broker", broker_url], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78
    assert "has no TLS" in done.stderr
    assert "lichen fleet init" in done.stderr
    assert "--insecure" in done.stderr
    assert not (folder / "state").exists()


def test_a_folder_without_a_coordinator_is_said_so(tmp_path):
    """Every listing: what to do instead."""
    for word in ("status", "devices", "versions", "audit"):
        with pytest.raises(StorageError, match="no coordinator has run"):
            run(word, tmp_path)


def test_a_full_disk_does_not_keep_a_coordinator_from_its_folder(tmp_path):
    """What is full says so by itself, in its own words; the lock needs no room."""
    with locked(tmp_path):
        pass
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with locked(tmp_path), pytest.raises(StorageError), locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_lock_lets_go_with_its_holder(tmp_path):
    """Held once; free again after."""
    with locked(tmp_path):
        assert is_running(tmp_path)
        with pytest.raises(StorageError, match=str(os.getpid())), locked(tmp_path):
            pass
    assert not is_running(tmp_path)


def test_a_status_that_cannot_be_written_is_counted(tmp_path):
    """The run goes on; the next one that can be written tells how many could not."""

    class Still:
        """A coordinator to which nothing happens."""

        def figures(self):
            return Figures(fleet="lab", task="main")

    path = tmp_path / "run" / "status.json"
    path.mkdir(parents=True)
    status = service._Status(Still(), path, Watchdog(Notifier({}), SystemClock()))
    status.write()
    status.write()
    path.rmdir()
    status.write()
    assert json.loads(path.read_text())["status_failures"] == 2
    assert status.figures.status_failures == 2


def test_who_only_looks_does_not_stop_a_start(tmp_path):
    """`lichen status` holds the lock for an instant: a coordinator that starts then waits for it."""
    with locked(tmp_path):
        pass
    with contextlib.ExitStack() as looking:
        looking.enter_context(locked(tmp_path, write=False))
        letting_go = threading.Timer(0.1, looking.close)
        letting_go.start()
        with locked(tmp_path):
            assert is_running(tmp_path)
        letting_go.join()


@pytest.mark.process
def test_a_challenge_of_a_silent_fleet_passes(broker):
    """A retained presence of one that is gone does not answer."""
    topics = FleetTopics("silent")
    ready = threading.Event()
    transport = MqttTransport(BrokerAddress.parse(broker), "ghost")
    transport.start(lambda event: ready.set() if isinstance(event, Connected | Received) else None)
    assert ready.wait(PATIENCE_S)
    gone = CoordinatorPresence(session=b"g" * 8, epoch=1, term=4)
    assert transport.publish(topics.coordinator, gone.pack(), retain=True) is not None
    transport.stop()
    challenge(BrokerAddress.parse(broker), "silent")


def test_recovery_is_for_a_coordinator_that_was_rolled_back(folder, fleet_of):
    """Refused where no device has shown that it is needed, unless it is forced."""
    fleet_of().start()
    state = folder / "state0"
    assert state.exists()
    (folder / "fleet.toml").write_text((folder / "fleet.toml").read_text().replace('"state"', '"state0"'))
    with pytest.raises(StorageError, match="not rolled back"):
        run("coordinator", "recover", folder / "fleet.toml")
    code, output = run("coordinator", "recover", folder / "fleet.toml", "--force")
    assert code == 0
    assert output.startswith("epoch 2 is open; start the coordinator again\n  kept: version 1.0")
    assert "  given up: " not in output
