"""A small fleet on brokers of every kind: it joins, trains, survives its broker's death, and balances.

MQTT 5 is not a case of its own: Lichen speaks 3.1.1, and a listener for both serves it as one for 3.1.1 does.
"""

import sys
import time

import pytest

from broker_coordinator.books.audit import audit
from broker_coordinator.embedded_broker import EmbeddedBroker
from hil.local_fleet import FleetOptions, LocalFleet

pytestmark = pytest.mark.process

VERSIONS = 5
PATIENCE_S = 90.0
LIMITS = {
    "mosquitto": (),
    "mosquitto-large-packets-refused": ("max_packet_size 131072",),
    "mosquitto-large-messages-dropped": ("message_size_limit 131072",),
    "mosquitto-20-queued": ("max_queued_messages 20", "max_inflight_messages 20"),
    "mosquitto-nothing-retained": ("retain_available false",),
    "amqtt": (),
    "iotcore": (),
}
_IOTCORE = (
    "import sys; from iotcore.iotcore import IotCoreBroker;"
    "IotCoreBroker(listen='127.0.0.1', port=int(sys.argv[1]), max_payload_size=1 << 18).run_forever()"
)


class LimitedBroker(EmbeddedBroker):
    """A broker of ours, with lines of configuration behind its own."""

    def __init__(self, name, folder):
        kind = name.split("-")[0]
        super().__init__("amqtt" if kind == "iotcore" else kind, 0, folder)
        self.kind = kind
        self.forgetful = name == "mosquitto-nothing-retained"
        self._lines = LIMITS[name]

    def _command(self):
        command = super()._command()
        if self.kind == "iotcore":
            return [sys.executable, "-c", _IOTCORE, str(self.port)]
        if self._lines:
            with (self._folder / "mosquitto.conf").open("a") as configuration:
                configuration.write("\n".join(self._lines) + "\n")
        return command


@pytest.fixture(params=LIMITS)
def limited_broker(request, tmp_path):
    """Each broker in turn; it ends with the test."""
    kind = request.param.split("-")[0]
    if kind == "iotcore":
        pytest.importorskip("iotcore", reason="iotcore is not installed")
    elif kind == "mosquitto" and EmbeddedBroker("auto", 0, tmp_path).kind != "mosquitto":
        pytest.skip("mosquitto is not installed")
    with LimitedBroker(request.param, tmp_path / "broker") as broker:
        yield broker


def await_version(fleet, number):
    """Wait until the coordinator has made so many versions."""
    deadline = time.monotonic() + PATIENCE_S
    while fleet.status().get("version", 0) < number:
        assert fleet.coordinator.running, fleet.coordinator.last_words()
        assert time.monotonic() < deadline, fleet.coordinator.last_words()
        time.sleep(0.05)


@pytest.mark.parametrize("codec", ["eden(bits=1)", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_fleet_works_on_every_broker_and_survives_its_death(limited_broker, tmp_path, codec):
    """Small updates in one message, and large ones in chunks; the broker is killed in mid-run, and comes
    back with nothing. Nobody is told what kind of broker it is."""
    options = FleetOptions(
        devices=3,
        versions=VERSIONS,
        broker=limited_broker.url,
        runtime="numpy",
        hidden=32 if codec != "float32" else 1024,
        codec=codec,
        settings={"buffer": {"size": 2}, "plan": {"epochs": 1}},
    )
    fleet = LocalFleet(tmp_path / "fleet", options)
    try:
        fleet.prepare()
        fleet.start()
        await_version(fleet, 2)
        limited_broker.kill()
        limited_broker.start()
        assert fleet.coordinator.wait(PATIENCE_S) == 0, fleet.coordinator.last_words()
        assert fleet.status()["version"] == VERSIONS
    finally:
        fleet.stop()
    found_out = "keeps no retained messages" in fleet.coordinator.log.read_text()
    assert found_out == limited_broker.forgetful
    books = audit(fleet.state, fleet.agent_states)
    assert books.balanced, books.faults
    assert (books.lost, books.duplicated, books.replay_ok) == (0, 0, True)
