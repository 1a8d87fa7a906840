"""How fast a coordinator takes updates, and whether its memory grows: many devices, small real updates.

One connection plays all devices (the broker asks for no names). It follows the task manifest, sends for
each version one valid update per device, and counts receipts. Beside it, in the same run, the same
messages go to an empty subscriber: what the broker itself delivers.
"""

import hashlib
import queue
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_protocol.codec import codec_for
from fl_protocol.errors import LichenError
from fl_protocol.layout import TensorLayout
from fl_protocol.receipt import Receipt
from fl_protocol.signed import peek
from fl_protocol.task import MAX_TASK_BYTES, TaskManifest
from fl_protocol.topics import FleetTopics, NamedTopic, ReceiptTopic
from fl_protocol.transport import Connected, Received, TransportEvent
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId
from hil.local_fleet import FleetOptions, LocalFleet
from models.runtime.artifact import TrainingArtifact

__all__ = ["ingest"]

DEVICES = 1_000
BUFFER = 500
WINDOW = 400
"""Updates under way at once."""
SILENCE_S = 30.0
MIB = 1 << 20


def ingest(updates: int) -> dict[str, Any]:
    """Send ``updates`` updates; accepted updates per second beside the broker's own rate, and the slope of
    the coordinator's RSS over them in KiB per 1,000 updates.

    Raises:
        LichenError: no receipt for 30 s.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = FleetOptions(
            devices=1,
            versions=1_000_000,
            settings={"buffer": {"size": BUFFER}, "publish": {"every_s": 0.5}},
        )
        fleet = LocalFleet(Path(folder) / "fleet", options)
        try:
            fleet.prepare()
            fleet.coordinator.start()
            layout = TrainingArtifact.open(fleet.folder / "artifact").layout
            rate, samples = _Load(fleet, layout).run(updates)
            ceiling = _broker_rate(fleet, min(updates, 20_000))
        finally:
            fleet.stop()
    counts, sizes = np.array(samples, dtype=np.float64).T
    steady = counts >= 0.2 * updates
    slope, _ = np.polyfit(counts[steady], sizes[steady] / 1024, 1)
    return {
        "updates": updates,
        "accepted_per_s": round(rate),
        "broker_per_s": round(ceiling),
        "share": round(rate / ceiling, 2),
        "rss_first_mib": round(sizes[0] / MIB, 1),
        "rss_last_mib": round(sizes[-1] / MIB, 1),
        "slope_kib_per_1000": round(float(slope) * 1000, 2),
        "broker": fleet.broker_name,
    }


class _Load:
    """All devices of the fleet on one connection."""

    def __init__(self, fleet: LocalFleet, layout: TensorLayout) -> None:
        self._coordinator = psutil.Process(fleet.coordinator.pid)
        self._topics = FleetTopics(fleet.options.name)
        self._layout = layout
        self._spec = fleet.options.codec
        codec = codec_for(self._spec)
        delta = np.random.default_rng(1).normal(0, 0.01, layout.size).astype(np.float32)
        self._payload = codec.encode(delta, layout, bytes(16))
        self._events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
        self._transport = MqttTransport(BrokerAddress.parse(fleet.broker_url), "load", window=2 * WINDOW)
        self._manifest: TaskManifest | None = None
        self._receipts = 0

    def run(self, updates: int) -> tuple[float, list[tuple[int, int]]]:
        """Send them all; updates per second, and (receipts so far, RSS in bytes) about every 1,000."""
        self._transport.start(self._events.put)
        samples: list[tuple[int, int]] = []
        sent, started = 0, 0.0
        turns = self._turns()
        try:
            while self._receipts < updates:
                while sent - self._receipts < WINDOW and sent < updates and self._send(*next(turns)):
                    started = started or time.monotonic()
                    sent += 1
                self._drain()
                if self._receipts // 1000 > len(samples):
                    samples.append((self._receipts, self._coordinator.memory_info().rss))
        finally:
            self._transport.stop()
        return updates / (time.monotonic() - started), samples

    def _turns(self) -> Iterator[tuple[str, VersionId]]:
        """Devices in turn, all with the turn's base: each counts once for it, so a full turn waits for
        the next version."""
        served = -1
        while True:
            manifest = self._manifest
            if manifest is None or manifest.version.number == served:
                self._wait_for_version(served)
                continue
            served = manifest.version.number
            for number in range(DEVICES):
                yield f"dev-{number:05d}", manifest.version

    def _wait_for_version(self, served: int) -> None:
        deadline = time.monotonic() + SILENCE_S
        while self._manifest is None or self._manifest.version.number == served:
            self._take(self._next(deadline))

    def _send(self, device: str, base: VersionId) -> bool:
        header = UpdateHeader(
            incarnation=device.encode()[-8:].rjust(8, b"0"),
            base=base,
            codec=self._spec,
            size=len(self._payload),
            sha256=hashlib.sha256(self._payload).digest(),
            fingerprint=self._layout.fingerprint,
            num_examples=32,
            steps_done=1,
            steps_planned=1,
        )
        topic = self._topics.begin(device, secrets.token_bytes(16))
        return self._transport.publish(topic, header.pack(self._payload)) is not None

    def _drain(self) -> None:
        """Wait for one event at least, and take what has come."""
        self._take(self._next(time.monotonic() + SILENCE_S))
        while not self._events.empty():
            self._take(self._events.get_nowait())

    def _next(self, deadline: float) -> TransportEvent:
        try:
            return self._events.get(timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            raise LichenError(f"the coordinator has said nothing for {SILENCE_S:.0f} s") from None

    def _take(self, event: TransportEvent) -> None:
        if isinstance(event, Connected):
            self._transport.subscribe([f"{self._topics.prefix}down/+/update/+", self._topics.task()])
        if not isinstance(event, Received):
            return
        topic = self._topics.parse(event.topic)
        if isinstance(topic, NamedTopic):
            self._manifest = TaskManifest.unpack(peek(event.payload, limit=MAX_TASK_BYTES))
        elif isinstance(topic, ReceiptTopic):
            receipt = Receipt.unpack(event.payload)
            if receipt.state == "refused":
                raise LichenError(f"an update of the load was refused: {receipt.reason}")
            self._receipts += receipt.terminal


def _broker_rate(fleet: LocalFleet, messages: int) -> float:
    """Messages per second from one publisher through the broker to a subscriber that does nothing."""
    address = BrokerAddress.parse(fleet.broker_url)
    arrived: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    room: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    subscriber = MqttTransport(address, "empty")
    publisher = MqttTransport(address, "publisher", window=WINDOW)
    subscriber.start(arrived.put)
    publisher.start(room.put)
    try:
        arrived.get(timeout=SILENCE_S)
        room.get(timeout=SILENCE_S)
        subscriber.subscribe(["rate/#"])
        time.sleep(0.5)
        body = bytes(600)
        started = time.monotonic()
        sent = received = 0
        while received < messages:
            while (
                sent < messages and sent - received < WINDOW and publisher.publish("rate/x", body) is not None
            ):
                sent += 1
            received += isinstance(arrived.get(timeout=SILENCE_S), Received)
            while not arrived.empty():
                received += isinstance(arrived.get_nowait(), Received)
        return messages / (time.monotonic() - started)
    finally:
        publisher.stop()
        subscriber.stop()
