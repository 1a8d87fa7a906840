"""A real device behind bad links: what was carried once is not carried again."""

import contextlib
import os
import pwd
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from broker_coordinator.embedded_broker import EmbeddedBroker
from fl_io.broker_address import BrokerAddress
from fl_protocol.codec import model_size
from fl_protocol.errors import ConfigError
from hil.bench.links import transfer
from hil.link import LinkEmulator
from hil.link_namespace import NamespaceLink
from hil.link_profile import LinkDirection, LinkProfile
from hil.processes import ManagedProcess
from models.runtime.artifact import TrainingArtifact

pytestmark = pytest.mark.process

HIDDEN = 13_000
"""A megabyte down, and two chunks of payload up."""
CHUNK = 64 << 10
OVERHEAD = 1.07
"""The artifact's graphs, the manifest, and MQTT itself."""
ONE_DEVICE = {
    "devices": 1,
    "versions": 2,
    "hidden": HIDDEN,
    "batch_size": 16,
    "settings": {"buffer": {"size": 2, "flush_after_s": 0.0}, "plan": {"epochs": 1, "max_steps": 2}},
}


def needed(fleet) -> int:
    """Bytes of the model that goes down."""
    return model_size(TrainingArtifact.open(fleet.folder / "artifact").layout)


def done(fleet) -> bool:
    """Whether the device's update has come to its end."""
    return bool(fleet.agent_status("dev-00").get("updates", {}).get("done"))


def test_a_link_that_breaks_all_the_time_costs_a_chunk_each_time():
    """Reset again and again in the middle: both directions go on where they were. Bytes that were lost on the
    way count, and each reset may cost the chunk it hit and half of one that was under way."""
    figures = transfer("nb-iot", hidden=HIDDEN, reset_every_s=0.7, faster=300.0)
    assert figures["resets"] >= 1
    assert figures["connections"] > 1
    for way, size in (("down", figures["model_bytes"]), ("up", figures["update_bytes"])):
        assert figures[f"{way}_ratio"] * size <= OVERHEAD * size + 1.5 * CHUNK * figures["resets"]


@pytest.mark.slow
def test_a_half_open_link_is_noticed_by_its_silence_and_gone_on_from(local_fleet, steps, tmp_path):
    """A router forgets the connection in the middle of a download: no error, no reset, nothing. The keepalive
    finds out, and of what had arrived nothing comes again."""
    with EmbeddedBroker("auto", 0, tmp_path / "broker") as broker:
        address = BrokerAddress.parse(broker.url)
        profile = LinkProfile(down=LinkDirection(rate_kbps=4000))
        with LinkEmulator(profile, upstream=(address.host, address.port)) as link:
            fleet = local_fleet(
                **ONE_DEVICE,
                broker=broker.url,
                agent_settings={"": {"broker": f"mqtt://127.0.0.1:{link.port}", "keepalive_s": 10}},
            )
            fleet.start()
            steps.until(fleet, lambda: link.counts.bytes_down > 400_000)
            link.forget()
            steps.until(fleet, lambda: done(fleet))
            counts = link.counts
            assert (counts.connections, counts.resets) == (2, 0)
            assert fleet.agent_status("dev-00")["reconnects"] == 1
            assert counts.bytes_down <= OVERHEAD * needed(fleet) + CHUNK
            fleet.stop()


@pytest.mark.mosquitto
def test_a_link_that_loses_packets_for_real_brings_everything(local_fleet, steps, broker_of, tmp_path):
    """Three in a hundred, both ways, in the kernel's own TCP: one connection carries the model and the
    update, and the protocol repeats nothing of its own."""
    line = LinkDirection(delay_ms=5, jitter_ms=5, rate_kbps=20_000, loss=0.03)
    link = NamespaceLink(LinkProfile(up=line, down=line), seed=11)
    try:
        link.start()
    except ConfigError as error:
        pytest.skip(str(error))
    try:
        with mosquitto_at(broker_of("mosquitto")._program, tmp_path, link.address) as port:
            fleet = local_fleet(
                **ONE_DEVICE,
                broker=f"mqtt://127.0.0.1:{port}",
                agent_settings={"": {"broker": f"mqtt://{link.address}:{port}"}},
            )
            words = [sys.executable, "-m", "edge_agent", "run", "--config"]
            words.append(str(fleet.folder / "devices" / "dev-00" / "agent.toml"))
            log = fleet.folder / "logs" / "dev-00.log"
            fleet.agents["dev-00"] = ManagedProcess("dev-00", link.within(words), log, folder=fleet.folder)
            fleet.start()
            steps.until(fleet, lambda: done(fleet))
            counts = link.counts
            assert fleet.agent_status("dev-00")["reconnects"] == 0
            assert counts.lost_up + counts.lost_down > 10
            # Headers of small packets, and what TCP sends again: a twentieth each, at most.
            assert needed(fleet) < counts.bytes_down <= 1.1 * OVERHEAD * needed(fleet)
            fleet.stop()
    finally:
        link.stop()


@contextlib.contextmanager
def mosquitto_at(program: str, folder, address: str) -> Iterator[int]:
    """A mosquitto on loopback and on one more address; its port."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    lines = [f"listener {port} {address}", f"listener {port} 127.0.0.1", "allow_anonymous true"]
    lines += ["message_size_limit 262144", "max_queued_messages 20000", "set_tcp_nodelay true"]
    if os.geteuid() == 0:
        lines.append(f"user {pwd.getpwuid(0).pw_name}")
    configuration = folder / "links.conf"
    configuration.write_text("\n".join(lines) + "\n")
    with (folder / "links.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(configuration)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 15
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((address, port), 1).close()
                break
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)
