"""A light device: the device's side of the conversation about small updates, and nothing else of it.

It follows the manifest, says birth and will, sends one update per version, asks about it until the
coordinator answers for it, and connects again with full jitter. It trains nothing: every update carries the
same payload, which its own id makes decode to another one. It verifies no signature and fetches no blob.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fl_io.mqtt_packets import ConnectOptions, Publication
from fl_protocol.presence import CoordinatorPresence, DevicePresence
from fl_protocol.receipt import Receipt
from fl_protocol.task import TaskManifest
from fl_protocol.topics import FleetTopics
from fl_protocol.transport import Will
from fl_protocol.version import VersionId
from hil.load.connection import LightConnection

__all__ = ["DeviceBooks", "LightDevice", "World"]

FIRST_PROBE_S = 30.0
LONGEST_PROBE_S = 600.0
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
SESSION_SPREAD_S = 5.0
INCARNATION = b"lightdev"


class World(Protocol):
    """What all devices of a load share."""

    @property
    def topics(self) -> FleetTopics:
        """The fleet's."""

    def manifest(self, payload: bytes) -> TaskManifest:
        """Read a manifest; 2,000 devices receive the same bytes."""

    def coordinator(self, payload: bytes) -> CoordinatorPresence:
        """Read the coordinator's presence."""

    def header(self, base: VersionId, *, whole: bool) -> bytes:
        """The body of ``begin`` for an update on ``base``; ``whole`` with its payload."""

    def take_turn(self) -> bool:
        """Whether one more update is wanted of the fleet; if so, it is taken."""

    async def dial(self, connection: LightConnection) -> None:
        """Open a connection to the broker; raises OSError."""


@dataclass(slots=True, kw_only=True)
class DeviceBooks:
    """What became of a device's updates; waits in seconds from the first send to the last word."""

    made: int = 0
    done: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    sent_again: int = 0
    connections: int = 0
    waits: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Update:
    update_id: bytes
    base: VersionId
    born: float
    attempt: int = 0
    timer: asyncio.TimerHandle | None = None


class LightDevice:
    """One device; ``training_s`` bounds the random time it takes for an update."""

    def __init__(
        self,
        name: str,
        world: World,
        *,
        chance: random.Random,
        training_s: float,
        settled: Callable[[], None],
    ) -> None:
        self.name = name
        self.books = DeviceBooks()
        self._world = world
        self._chance = chance
        self._training_s = training_s
        self._settled = settled
        self._filters = world.topics.device_filters(name)
        self._connection: LightConnection | None = None
        self._online = False
        self._ended = asyncio.Event()
        self._manifest: TaskManifest | None = None
        self._coordinator = b""
        self._update: _Update | None = None
        self._training: asyncio.TimerHandle | None = None
        self._birth: asyncio.TimerHandle | None = None
        self._used: VersionId | None = None

    @property
    def waiting(self) -> bool:
        """Whether an update of it has no last word yet."""
        return self._update is not None

    @property
    def online(self) -> bool:
        """Whether the broker has taken it."""
        return self._online

    async def run(self) -> None:
        """Stay connected until cancelled."""
        delay = FIRST_DELAY_S
        try:
            while True:
                self._ended.clear()
                self._connection = LightConnection(
                    self._greeting(), connected=self._connected, received=self._received, lost=self._lost
                )
                try:
                    await self._world.dial(self._connection)
                    await self._ended.wait()
                except OSError:
                    pass
                delay = FIRST_DELAY_S if self._online else min(2 * delay, LONGEST_DELAY_S)
                self._online = False
                await asyncio.sleep(self._chance.uniform(0.0, delay))
        finally:
            self._forget_timers()
            if self._birth is not None:
                self._birth.cancel()
            if self._connection is not None:
                self._connection.leave()

    def _greeting(self) -> ConnectOptions:
        self._session = secrets.token_bytes(8)
        farewell = DevicePresence(online=False, session=self._session)
        return ConnectOptions(
            client_id=self.name, will=Will(self._world.topics.state(self.name), farewell.pack())
        )

    def _connected(self) -> None:
        assert self._connection is not None
        self._online = True
        self.books.connections += 1
        self._connection.subscribe(self._filters)
        self._be_born()
        if self._update is not None:
            self._ask()

    def _be_born(self) -> None:
        self._birth = None
        if not self._online or self._connection is None:
            return
        birth = DevicePresence(
            online=True,
            session=self._session,
            incarnation=INCARNATION,
            agent="0.1.0",
            samples=32,
            seen=self._manifest.order if self._manifest is not None else (0, 0),
        )
        self._connection.publish(self._world.topics.state(self.name), birth.pack())

    def _lost(self, reason: str) -> None:
        self._ended.set()

    def _received(self, message: Publication) -> None:
        topics = self._world.topics
        if message.topic.startswith(f"{topics.prefix}down/"):
            update = self._update
            if update is not None and message.topic == topics.receipt(self.name, update.update_id):
                self._told(update, Receipt.unpack(message.payload))
        elif message.topic == topics.coordinator and message.payload:
            session = self._world.coordinator(message.payload).session
            if session != self._coordinator and not message.retained:
                self._coordinator_changed()
            self._coordinator = session
        elif message.topic == self._filters[1] and message.payload:
            manifest = self._world.manifest(message.payload)
            if self._manifest is None or manifest.order > self._manifest.order:
                self._manifest = manifest
            self._train()

    def _coordinator_changed(self) -> None:
        """What was said before may not have been heard."""
        loop, chance = asyncio.get_running_loop(), self._chance
        if self._birth is None:
            self._birth = loop.call_later(chance.uniform(0.0, SESSION_SPREAD_S), self._be_born)
        if self._update is not None:
            self._ask_in(self._update, chance.uniform(0.0, SESSION_SPREAD_S))

    def _train(self) -> None:
        """Begin an update on the newest version, unless one is under way or the version was used."""
        manifest = self._manifest
        busy = self._training is not None or self._update is not None
        if manifest is None or busy or manifest.version == self._used or not self._world.take_turn():
            return
        delay = self._chance.uniform(0.0, self._training_s)
        self._training = asyncio.get_running_loop().call_later(delay, self._make)

    def _make(self) -> None:
        assert self._manifest is not None
        self._training = None
        self._used = self._manifest.version
        self._update = _Update(
            update_id=secrets.token_bytes(16), base=self._manifest.version, born=time.monotonic()
        )
        self.books.made += 1
        self._send(self._update, whole=True)

    def _send(self, update: _Update, *, whole: bool) -> None:
        if self._online and self._connection is not None:
            topic = self._world.topics.begin(self.name, update.update_id)
            self._connection.publish(topic, self._world.header(update.base, whole=whole))
        delay = min(FIRST_PROBE_S * 2.0**update.attempt, LONGEST_PROBE_S)
        update.attempt += 1
        self._ask_in(update, self._chance.uniform(delay, 2 * delay))

    def _ask(self) -> None:
        if self._update is not None:
            self._update.timer = None
            self._send(self._update, whole=False)

    def _ask_in(self, update: _Update, seconds: float) -> None:
        if update.timer is not None:
            update.timer.cancel()
        update.timer = asyncio.get_running_loop().call_later(seconds, self._ask)

    def _told(self, update: _Update, receipt: Receipt) -> None:
        if receipt.state == "later":
            self._ask_in(update, max(receipt.wait_s, 1.0) * self._chance.uniform(1.0, 1.5))
        elif receipt.state == "open":
            self.books.sent_again += 1
            self._send(update, whole=True)
        else:
            self._end(update, receipt)

    def _end(self, update: _Update, receipt: Receipt) -> None:
        self.books.waits.append(time.monotonic() - update.born)
        if receipt.state == "done":
            self.books.done += 1
        else:
            self.books.refused[receipt.reason] = self.books.refused.get(receipt.reason, 0) + 1
        self._forget_timers()
        self._update = None
        self._settled()
        self._train()

    def _forget_timers(self) -> None:
        if self._training is not None:
            self._training.cancel()
        if self._update is not None and self._update.timer is not None:
            self._update.timer.cancel()
