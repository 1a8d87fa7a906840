"""Simulations over real brokers: the same fleet on sockets, and brokers that refuse, stop or go away."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
from certificates import Authority, tls_mosquitto
from click.testing import CliRunner

import lichen
from broker_coordinator.books.audit import audit
from broker_coordinator.embedded_broker import EmbeddedBroker
from fl_io.broker_address import BrokerAddress
from fl_io.mqtt import MqttTransport
from fl_protocol.errors import ConfigError, TransportError
from fl_protocol.loopback import Link
from fl_protocol.transport import Connected, Delivered, Received
from hil.mosquitto import free_ports, mosquitto_program
from hil.simulate import broker_medium
from hil.simulate.command import simulate
from hil.simulate.device_class import DeviceClass
from hil.simulate.transport import Caller, Meter
from models.zoo import digits
from models.zoo.mlp import digits_artifact

pytestmark = pytest.mark.process
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A small MLP on the digits."""
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits", hidden=8)


def devices(count, seed):
    """Digits dealt out at random."""
    training, _ = digits.split(seed=0)
    for rows in np.array_split(np.random.default_rng(seed).permutation(len(training)), count):
        yield training.x[rows], training.y[rows]


def run(artifact, **options):
    """Twelve devices that all take part in each version."""
    settings = {
        "count": 12,
        "versions": 3,
        "fleet": {"buffer": {"size": 12}},
        "runtimes": ("numpy",),
    }
    return lichen.simulate(artifact, devices, **{**settings, **options})


@contextlib.contextmanager
def mosquitto(folder, *lines):
    """A mosquitto with these lines in its configuration; its URL."""
    (port,) = free_ports(1)
    text = [f"listener {port} 127.0.0.1", *lines]
    if os.geteuid() == 0:
        text.append("user root")
    (folder / "mosquitto.conf").write_text("\n".join(text) + "\n")
    process = subprocess.Popen(
        [mosquitto_program(), "-c", str(folder / "mosquitto.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            assert process.poll() is None, "mosquitto has ended"
            threading.Event().wait(0.02)
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def left_on(url):
    """Topics retained on a broker."""
    events: queue.SimpleQueue = queue.SimpleQueue()
    transport = MqttTransport(BrokerAddress.parse(url), "looks")
    transport.start(events.put)
    try:
        topics = []
        while True:
            event = events.get(timeout=PATIENCE_S)
            if isinstance(event, Connected):
                transport.subscribe(["fl1/#", "end"])
                transport.publish("end", b"")
            elif isinstance(event, Received) and event.topic == "end":
                return topics
            elif isinstance(event, Received) and event.payload:  # amqtt keeps what is empty
                topics.append(event.topic)
    finally:
        transport.stop()


def test_a_real_broker_carries_the_same_fleet(artifact, broker, tmp_path):
    """As many updates and versions as in memory, of every device; the books balance, every byte went through
    a socket, and nothing stays on the broker."""
    memory = run(artifact)
    real = run(artifact, broker=broker, state=tmp_path / "state")
    assert (real.versions, real.accepted, real.devices_heard) == (3, 36, 12)
    assert real.refused == memory.refused == {}
    assert real.payload_bytes == memory.payload_bytes
    assert memory.bytes_up <= real.bytes_up < 2 * memory.bytes_up
    assert memory.bytes_down <= real.bytes_down < 2 * memory.bytes_down
    report = audit(tmp_path / "state")
    assert report.balanced, report.faults
    assert left_on(broker) == []


@pytest.mark.mosquitto
def test_a_slow_link_takes_its_time_before_a_real_socket(tmp_path, broker_of):
    """Large updates in chunks: what the link takes of virtual time passes, as it does in memory."""
    large = digits_artifact(tmp_path / "large", hidden=400)
    link = DeviceClass(name="lte", up_bytes_s=20_000.0, down_bytes_s=50_000.0, latency_s=0.1)
    options = {"count": 3, "versions": 1, "codec": "float32", "fleet": {"buffer": {"size": 3}}}
    url = broker_of("mosquitto").url
    memory = run(large, classes=[link], **options)
    quick = run(large, broker=url, **options)
    slow = run(large, classes=[link], broker=url, **options)
    assert slow.accepted == quick.accepted == memory.accepted == 3
    assert slow.payload_bytes == memory.payload_bytes == 3 * 4 * large.layout.size
    # No more is to be said: over a broker virtual time waits for the machine too.
    assert min(slow.virtual_s, memory.virtual_s) > 4 * large.layout.size / 20_000


@pytest.mark.mosquitto
def test_what_a_slow_link_takes_is_delivered(broker_of):
    """Messages that are too many bytes for the socket behind it are refused at once, not lost on the way;
    when there is room, they are taken."""
    medium = broker_medium.BrokerMedium(broker_of("mosquitto").url, devices=1)
    events: list = []
    connection = medium.connection(
        Caller(client_id="device", link=Link(latency_s=0.1), woken=lambda: None, meter=Meter())
    )
    try:
        connection.start(events.append)
        pass_until(medium, lambda: any(isinstance(event, Connected) for event in events))
        large = bytes(3 << 20)
        taken = [connection.publish("x", large)]
        assert connection.publish("x", large) is None
        taken.append(connection.publish("x", b"small"))
        pass_until(medium, lambda: delivered(events) == taken)
        taken.append(connection.publish("x", large))
        assert None not in taken
        pass_until(medium, lambda: delivered(events) == taken)
    finally:
        connection.stop()
        medium.close(lambda: ["fl1/nothing"])


def delivered(events):
    """Tokens, as their receiver heard of them."""
    return [event.token for event in events if isinstance(event, Delivered)]


def pass_until(medium, holds):
    """Let the medium's time pass until it holds."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, "it never came"
        if not medium.deliver_due() + medium.clock.happen():
            dues = [due for due in (medium.next_due(), medium.clock.next_due()) if due is not None]
            medium.clock.advance_to(min(dues, default=medium.clock.monotonic() + 1.0))


@pytest.mark.mosquitto
def test_the_command_takes_a_broker(broker_of):
    """With the same figures as without."""
    words = ["iid", "--devices", "6", "--json"]
    for change in ("versions=1", "hidden=8", "fleet.buffer.size=3", 'runtimes=["numpy"]'):
        words += ["--set", change]
    memory = CliRunner().invoke(simulate, words)
    real = CliRunner().invoke(simulate, [*words, "--broker", broker_of("mosquitto").url])
    assert (memory.exit_code, real.exit_code) == (0, 0), real.output
    assert json.loads(real.stdout)[0].keys() == json.loads(memory.stdout)[0].keys()
    assert json.loads(real.stdout)[0]["versions"] == 1


@pytest.mark.mosquitto
def test_connections_are_encrypted_where_the_broker_wants_it(artifact, tmp_path):
    """With the authority that ``[fleet.tls]`` names; without it the run ends at once."""
    authority = Authority(tmp_path)
    tables = {"buffer": {"size": 12}, "tls": {"ca": str(authority.ca)}}
    with tls_mosquitto(mosquitto_program(), tmp_path, authority.broker(), authority.ca) as port:
        url = f"mqtts://127.0.0.1:{port}"
        assert run(artifact, broker=url, versions=1, fleet=tables).accepted == 12
        with pytest.raises(TransportError, match="is not trusted") as caught:
            run(artifact, broker=url, versions=1)
    assert "[fleet.tls] ca" in caught.value.hint


@pytest.mark.mosquitto
def test_a_broker_that_demands_certificates_is_told(artifact, tmp_path):
    """That of a fleet does: the run ends at once, and says what a simulation can and cannot show."""
    authority = Authority(tmp_path)
    tables = {"buffer": {"size": 12}, "tls": {"ca": str(authority.ca)}}
    strict = tls_mosquitto(
        mosquitto_program(), tmp_path, authority.broker(), authority.ca, "require_certificate true"
    )
    with (
        strict as port,
        pytest.raises(TransportError, match="takes no device without a certificate") as caught,
    ):
        run(artifact, broker=f"mqtts://127.0.0.1:{port}", versions=1, fleet=tables)
    assert "[fleet.tls] certificate" in caught.value.hint


@pytest.mark.mosquitto
def test_a_broker_that_carries_nothing_of_ours_is_told(artifact, tmp_path, monkeypatch):
    """It takes every connection and acknowledges all, and its rules let nothing through."""
    monkeypatch.setattr("hil.simulate.broker_medium.LAST_WORD_S", 1.0)
    authority = Authority(tmp_path)
    tables = {"buffer": {"size": 12}, "tls": {"ca": str(authority.ca)}}
    rights = tmp_path / "rights"
    rights.write_text("topic readwrite other/#\n")
    rights.chmod(0o600)
    dumb = tls_mosquitto(
        mosquitto_program(), tmp_path, authority.broker(), authority.ca, f"acl_file {rights}"
    )
    with dumb as port, pytest.raises(TransportError, match="carries no message of fl1/simulation-"):
        run(artifact, broker=f"mqtts://127.0.0.1:{port}", versions=1, fleet=tables)


@pytest.mark.mosquitto
def test_power_fails_on_real_connections_too(artifact, broker_of):
    """Devices that go without a farewell and come back on a new socket, with their outboxes."""
    hard = {
        "availability": {"kind": "lognormal", "on_s": 20.0, "off_s": 10.0},
        "dropout": 0.3,
        "away_s": 20.0,
        "fleet": {"buffer": {"size": 6, "flush_after_s": 120.0}},
    }
    result = run(artifact, broker=broker_of("mosquitto").url, **hard)
    assert result.versions == 3
    assert result.losses > 0


@pytest.mark.mosquitto
def test_a_broker_that_takes_too_few_connections_is_told(artifact, tmp_path):
    """How many it holds, and which limit to raise."""
    with mosquitto(tmp_path, "allow_anonymous true", "max_connections 6") as url:
        # Each probe that closed without a CONNECT makes mosquitto 2.0 take one more; the run first sees
        # whether a message comes through, which takes a place for a moment.
        with pytest.raises(
            TransportError, match=r"holds (5|6|7|8|9) connections of this simulation"
        ) as caught:
            run(artifact, broker=url)
        assert "max_connections" in caught.value.hint


@pytest.mark.mosquitto
def test_a_broker_that_refuses_is_told(artifact, tmp_path):
    """At the first word, with what to write."""
    with (
        mosquitto(tmp_path, "allow_anonymous false") as url,
        pytest.raises(TransportError, match=r"refuses .*: Not authorized"),
    ):
        run(artifact, broker=url)


@pytest.mark.mosquitto
def test_a_broker_that_goes_away_ends_the_run(artifact, tmp_path):
    """After a few attempts to find it again."""
    broker = EmbeddedBroker("mosquitto", 0, tmp_path).start()
    try:
        with pytest.raises(TransportError, match="has gone away"):
            run(
                artifact,
                versions=1000,
                broker=broker.url,
                progress=lambda fleet: fleet.coordinator.version.number >= 1 and broker.kill(),
            )
    finally:
        broker.stop()


@pytest.mark.mosquitto
def test_a_broker_that_falls_silent_ends_the_run(artifact, tmp_path, monkeypatch):
    """The error says how much waits for its answer."""
    monkeypatch.setattr(broker_medium, "SILENT_S", 1.0)
    monkeypatch.setattr(broker_medium, "LOOK_AROUND_S", 0.1)
    monkeypatch.setattr(broker_medium, "LAST_WORD_S", 0.5)
    with EmbeddedBroker("mosquitto", 0, tmp_path) as broker:
        try:
            with pytest.raises(TransportError, match=r"has said nothing for .* messages and"):
                run(
                    artifact,
                    versions=1000,
                    broker=broker.url,
                    progress=lambda fleet: (
                        fleet.coordinator.version.number >= 1 and os.kill(broker.pid, signal.SIGSTOP)
                    ),
                )
        finally:
            os.kill(broker.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("ws://127.0.0.1:1", ConfigError, "takes no ws:// broker"),
        ("mqtt://127.0.0.1:1", TransportError, "no broker answers"),
    ],
)
def test_what_cannot_be_reached_is_told_at_once(artifact, url, error, said):
    """Before anything is made."""
    with pytest.raises(error, match=said):
        run(artifact, broker=url)


def test_more_devices_than_files_are_told(monkeypatch):
    """With how many there may be."""
    monkeypatch.setattr(broker_medium.resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(ConfigError) as caught:
        broker_medium.BrokerMedium("mqtt://127.0.0.1:1", devices=1000)
    assert "simulate 959 --devices" in caught.value.hint
