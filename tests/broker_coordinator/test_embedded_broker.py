"""The broker that Lichen runs itself."""

import os
import queue
import signal
import subprocess
import sys

import psutil
import pytest

from broker_coordinator.embedded_broker import EmbeddedBroker
from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_protocol.errors import ConfigError, TransportError
from fl_protocol.transport import Connected, Received

KINDS = ("mosquitto", "amqtt")

PARENT = """
import sys, time
from pathlib import Path
from broker_coordinator.embedded_broker import EmbeddedBroker
broker = EmbeddedBroker(sys.argv[1], 0, Path(sys.argv[2])).start()
print(broker.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=KINDS)
def broker(request, tmp_path):
    with EmbeddedBroker(request.param, 0, tmp_path / "broker") as running:
        yield running


def connected(url, client_id):
    events = queue.Queue()
    transport = MqttTransport(BrokerAddress.parse(url), client_id)
    transport.start(events.put)
    assert isinstance(events.get(timeout=10), Connected)
    return transport, events


def received(events):
    while True:
        event = events.get(timeout=10)
        if isinstance(event, Received):
            return event


@pytest.mark.process
def test_it_keeps_retained_messages_and_passes_a_chunk_whole(broker):
    """A retained message of 64 KiB reaches a later subscriber byte for byte."""
    transport, _ = connected(broker.url, "publisher")
    payload = os.urandom(1 << 16)
    assert transport.publish("fl1/f/blob/x/0", payload, retain=True) is not None
    reader, events = connected(broker.url, "reader")
    reader.subscribe(["fl1/f/blob/x/0"])
    message = received(events)
    reader.stop()
    transport.stop()
    assert message.payload == payload


@pytest.mark.process
def test_it_comes_back_on_its_port_with_an_empty_store(broker):
    """After kill -9 the same address serves again, and nothing retained is left."""
    transport, _ = connected(broker.url, "publisher")
    transport.publish("fl1/f/coordinator", b"old", retain=True)
    transport.stop()
    url = broker.url
    broker.kill()
    assert broker.pid is None
    broker.start()
    assert broker.url == url
    reader, events = connected(url, "reader")
    reader.subscribe(["#"])
    reader.publish("fl1/f/coordinator", b"new")
    assert received(events).payload == b"new"
    reader.stop()


@pytest.mark.process
def test_a_port_that_is_taken_is_said_so(broker, tmp_path):
    """A second broker on the same port is refused at once, with what to do."""
    with pytest.raises(TransportError, match="listens on port"):
        EmbeddedBroker("auto", broker.port, tmp_path / "second").start()


@pytest.mark.process
@pytest.mark.parametrize("kind", KINDS)
def test_it_dies_with_its_parent(kind, tmp_path):
    """No broker is left behind when the process that started it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, kind, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("kind", KINDS)
def test_its_name_says_program_and_version(kind, tmp_path):
    """The name is for reports: which broker was it?"""
    name, _, number = EmbeddedBroker(kind, 0, tmp_path).name.partition(" ")
    assert name == kind
    assert number[0].isdigit()


def test_an_unknown_kind_is_a_configuration_error(tmp_path):
    """The message lists what there is."""
    with pytest.raises(ConfigError, match="auto, mosquitto, amqtt"):
        EmbeddedBroker("emqx", 0, tmp_path)
