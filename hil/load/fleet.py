"""A load: a real coordinator on a real broker, and thousands of light devices that want something of it."""

import asyncio
import hashlib
import random
import resource
import signal
import statistics
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from broker_coordinator.books.audit import audit
from fl_io.broker_address import BrokerAddress
from fl_protocol.codec import codec_for
from fl_protocol.errors import LichenError
from fl_protocol.layout import TensorLayout
from fl_protocol.presence import CoordinatorPresence
from fl_protocol.signed import peek
from fl_protocol.task import MAX_TASK_BYTES, TaskManifest
from fl_protocol.topics import FleetTopics
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId
from hil.load.connection import LightConnection
from hil.load.device import INCARNATION, LightDevice
from hil.local_fleet import FleetOptions, LocalFleet
from models.runtime import TrainingArtifact

__all__ = ["LightFleet", "LoadOptions", "LoadReport"]

WATCH_EVERY_S = 0.5
SPARE_FILES = 200
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """``devices`` connect within ``ramp_s`` and make ``updates`` in all, each in up to ``training_s``
    seconds; it is an error if nothing is settled for ``silence_s``. Half-way the coordinator's process is
    stopped for ``stall_s``, so that all that is said meanwhile comes at once."""

    devices: int = 2_000
    updates: int = 20_000
    buffer: int = 200
    publish_every_s: float = 1.0
    training_s: float = 1.0
    ramp_s: float = 10.0
    stall_s: float = 0.0
    silence_s: float = 90.0
    broker: str = "auto"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load came to. ``fewest`` and ``most`` are accepted updates of one device, waits are seconds
    from an update's first send to its last word, ``*_peak`` figures what ``/metrics`` showed at most."""

    devices: int
    updates: int
    accepted: int
    refused: dict[str, int]
    sent_again: int
    reconnects: int
    fewest: int
    most: int
    wait_median_s: float
    wait_longest_s: float
    seconds: float
    updates_per_s: float
    versions: int
    online_peak: int
    inbox_peak: int
    inbox_dropped: int
    outgoing_peak: int
    outgoing_dropped: int
    rss_first_mib: float
    rss_peak_mib: float
    broker_rss_mib: float
    broker: str
    balanced: bool


class LightFleet:
    """Runs one load in ``folder``; see ``LoadReport``."""

    def __init__(self, folder: Path, options: LoadOptions) -> None:
        self.options = options
        self._fleet = LocalFleet(
            folder,
            FleetOptions(
                devices=1,
                versions=1_000_000,
                broker=options.broker,
                settings={
                    "buffer": {"size": options.buffer, "flush_after_s": 2.0},
                    "publish": {"every_s": options.publish_every_s},
                    "http": {"enabled": True, "port": 0},
                },
            ),
        )
        self.topics = FleetTopics(self._fleet.options.name)
        self._manifest_bytes = self._presence_bytes = b""
        self._headers: dict[tuple[VersionId, bool], bytes] = {}
        self._left = options.updates
        self._settled = 0
        self._moved_at = 0.0
        self._peaks: Counter[str] = Counter()
        self._rss: list[int] = []

    def run(self) -> LoadReport:
        """Start everything, let the devices send what is wanted, end everything, and read the books.

        Raises:
            LichenError: nothing was settled for ``silence_s``; the coordinator ended.
        """
        _allow_files(self.options.devices + SPARE_FILES)
        fleet = self._fleet
        try:
            fleet.prepare()
            self._prepare(TrainingArtifact.open(fleet.folder / "artifact").layout)
            fleet.coordinator.start()
            devices, seconds = asyncio.run(self._load())
            broker = fleet.embedded.pid if fleet.embedded is not None else None
            broker_rss = psutil.Process(broker).memory_info().rss if broker else 0
        finally:
            fleet.stop()
        books = audit(fleet.state)
        return self._report(devices, seconds, broker_rss, balanced=books.balanced)

    # What the devices share

    def manifest(self, payload: bytes) -> TaskManifest:
        """Read a manifest, once."""
        if payload != self._manifest_bytes:
            self._manifest_bytes = payload
            self._manifest = TaskManifest.unpack(peek(payload, limit=MAX_TASK_BYTES))
        return self._manifest

    def coordinator(self, payload: bytes) -> CoordinatorPresence:
        """Read the coordinator's presence, once."""
        if payload != self._presence_bytes:
            self._presence_bytes = payload
            self._presence = CoordinatorPresence.unpack(payload)
        return self._presence

    def header(self, base: VersionId, *, whole: bool) -> bytes:
        """A header on ``base``; the same for all devices."""
        if (base, whole) not in self._headers:
            header = UpdateHeader(
                incarnation=INCARNATION,
                base=base,
                codec=self._fleet.options.codec,
                size=len(self._payload),
                sha256=hashlib.sha256(self._payload).digest(),
                fingerprint=self._layout.fingerprint,
                num_examples=32,
                steps_done=1,
                steps_planned=1,
            )
            if len(self._headers) > 64:
                self._headers.clear()
            self._headers[base, whole] = header.pack(self._payload if whole else None)
        return self._headers[base, whole]

    def take_turn(self) -> bool:
        """Whether one more update is wanted."""
        wanted = self._left > 0
        self._left -= wanted
        return wanted

    async def dial(self, connection: LightConnection) -> None:
        """Open a connection to the broker."""
        address = BrokerAddress.parse(self._fleet.broker_url)
        await asyncio.get_running_loop().create_connection(lambda: connection, address.host, address.port)

    # The run

    def _prepare(self, layout: TensorLayout) -> None:
        delta = np.random.default_rng(self.options.seed).normal(0, 0.01, layout.size).astype(np.float32)
        self._layout = layout
        self._payload = codec_for(self._fleet.options.codec).encode(delta, layout, bytes(16))

    async def _load(self) -> tuple[list[LightDevice], float]:
        options = self.options
        chance = random.Random(options.seed)
        self._done = asyncio.Event()
        devices = [
            LightDevice(
                f"dev-{number:05d}",
                self,
                chance=random.Random(chance.getrandbits(64)),
                training_s=options.training_s,
                settled=self._count,
            )
            for number in range(options.devices)
        ]
        await self._coordinator_ready()
        self._moved_at = started = time.monotonic()
        tasks = [asyncio.create_task(self._come(device, chance)) for device in devices]
        try:
            await self._watch()
            seconds = time.monotonic() - started
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return devices, seconds

    async def _coordinator_ready(self) -> None:
        """What is said to nobody is said in vain: wait until it is connected."""
        until = time.monotonic() + self.options.silence_s
        while self._fleet.status().get("state") != "running":
            if not self._fleet.coordinator.running or time.monotonic() > until:
                raise LichenError(
                    "the coordinator does not come up", hint=self._fleet.coordinator.last_words()
                )
            await asyncio.sleep(WATCH_EVERY_S / 5)

    async def _come(self, device: LightDevice, chance: random.Random) -> None:
        await asyncio.sleep(chance.uniform(0.0, self.options.ramp_s))
        await device.run()

    def _count(self) -> None:
        self._settled += 1
        self._moved_at = time.monotonic()
        if self._settled == self.options.updates:
            self._done.set()

    async def _watch(self) -> None:
        """Look at the coordinator from outside, until all is settled."""
        process = psutil.Process(self._fleet.coordinator.pid)
        stall_s = self.options.stall_s
        while not self._done.is_set():
            if not self._fleet.coordinator.running:
                raise LichenError("the coordinator ended", hint=self._fleet.coordinator.last_words())
            if time.monotonic() - self._moved_at > self.options.silence_s:
                raise LichenError(
                    f"nothing was settled for {self.options.silence_s:.0f} s"
                    f" ({self._settled} of {self.options.updates} updates were)"
                )
            if stall_s and self._settled * 2 >= self.options.updates:
                await self._stall(stall_s)
                stall_s = 0.0
            await asyncio.to_thread(self._scrape)
            self._rss.append(process.memory_info().rss)
            try:
                await asyncio.wait_for(self._done.wait(), WATCH_EVERY_S)
            except TimeoutError:
                continue
        await asyncio.to_thread(self._scrape)

    async def _stall(self, seconds: float) -> None:
        self._fleet.coordinator.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._fleet.coordinator.signal(signal.SIGCONT)

    def _scrape(self) -> None:
        url = self._fleet.status().get("http")
        if not url:
            return
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        for line in lines:
            name, _, value = line.rpartition(" ")
            if name.startswith("lichen_") and "{" not in name:
                self._peaks[name] = max(self._peaks[name], int(float(value)))

    def _report(
        self, devices: list[LightDevice], seconds: float, broker_rss: int, *, balanced: bool
    ) -> LoadReport:
        books = [device.books for device in devices]
        refused: Counter[str] = Counter()
        for each in books:
            refused.update(each.refused)
        waits = sorted(wait for each in books for wait in each.waits)
        done = [each.done for each in books]
        peak = self._peaks
        return LoadReport(
            devices=len(devices),
            updates=sum(each.made for each in books),
            accepted=sum(done),
            refused=dict(refused),
            sent_again=sum(each.sent_again for each in books),
            reconnects=sum(max(each.connections - 1, 0) for each in books),
            fewest=min(done),
            most=max(done),
            wait_median_s=round(statistics.median(waits), 3),
            wait_longest_s=round(waits[-1], 3),
            seconds=round(seconds, 1),
            updates_per_s=round(sum(done) / seconds, 1),
            versions=peak["lichen_version"],
            online_peak=peak["lichen_devices_online"],
            inbox_peak=peak["lichen_inbox_highest"],
            inbox_dropped=peak["lichen_inbox_dropped_total"],
            outgoing_peak=peak["lichen_outgoing"],
            outgoing_dropped=peak["lichen_outgoing_dropped_total"],
            rss_first_mib=round(self._rss[0] / MIB, 1),
            rss_peak_mib=round(max(self._rss) / MIB, 1),
            broker_rss_mib=round(broker_rss / MIB, 1),
            broker=self._fleet.broker_name,
            balanced=balanced,
        )


def _allow_files(wanted: int) -> None:
    """Let us, and the broker that we start, open so many files.

    Raises:
        LichenError: the system does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise LichenError(
            f"{wanted} open files are needed, {hard} allowed", hint=f"ulimit -Hn {wanted}, as root"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
