"""A flood: small updates of many devices as fast as the coordinator takes them, over a hundred connections.

The same connections can send the same messages to an empty subscriber: that is what the broker itself
delivers, with equal publishers.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator

import numpy as np

from fl_io.broker_address import BrokerAddress
from fl_io.mqtt_packets import ConnectOptions, Publication
from fl_protocol.codec import codec_for
from fl_protocol.errors import LichenError
from fl_protocol.layout import TensorLayout
from fl_protocol.receipt import Receipt
from fl_protocol.signed import peek
from fl_protocol.task import MAX_TASK_BYTES, TaskManifest
from fl_protocol.topics import FleetTopics
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId
from hil.load.connection import LightConnection
from hil.load.listener import Listener

__all__ = ["Flood"]

CONNECTIONS = 100
DEVICES_EACH = 40
WINDOW = 1500
"""Messages under way at once, from their publish to their receipt, or to the empty subscriber."""
SILENCE_S = 30.0
POLL_S = 0.001


class Flood:
    """The devices of a fleet, forty on each connection; ``async with`` connects them.

    Raises:
        LichenError: the broker refuses, nothing moves for 30 s, an update was refused.
    """

    def __init__(self, address: BrokerAddress, fleet: str, layout: TensorLayout, codec: str) -> None:
        self._address = address
        self._topics = FleetTopics(fleet)
        self._layout = layout
        self._codec = codec
        delta = np.random.default_rng(1).normal(0, 0.01, layout.size).astype(np.float32)
        self._payload = codec_for(codec).encode(delta, layout, bytes(16))
        self._connections: list[LightConnection] = []
        self._connected = 0
        self._version: VersionId | None = None
        self._bodies: dict[VersionId, bytes] = {}
        self._words: dict[bytes, Receipt] = {}
        self._receipts = 0
        self._refused = ""
        self._wake = asyncio.Event()

    async def __aenter__(self) -> "Flood":
        loop = asyncio.get_running_loop()
        for number in range(CONNECTIONS):
            connection = LightConnection(
                ConnectOptions(client_id=f"flood-{number}"),
                connected=self._count_connection,
                received=self._received,
                lost=self._lost,
            )
            await loop.create_connection(lambda it=connection: it, self._address.host, self._address.port)  # type: ignore[misc]
            self._connections.append(connection)
        await self._until(lambda: self._connected == CONNECTIONS)
        for number, connection in enumerate(self._connections):
            devices = range(number, CONNECTIONS * DEVICES_EACH, CONNECTIONS)
            filters = [f"{self._topics.prefix}down/{_name(device)}/#" for device in devices]
            for at in range(0, len(filters), 8):
                connection.subscribe(filters[at : at + 8])
        self._connections[0].subscribe([self._topics.task()])
        return self

    async def __aexit__(self, *exception: object) -> None:
        for connection in self._connections:
            connection.leave()

    async def updates(self, count: int, progress: Callable[[int], None]) -> float:
        """Have so many updates accepted: per second. ``progress`` is told of every receipt or few."""
        self._receipts = 0
        await self._until(lambda: self._version is not None)
        turns, sent, started = self._turns(), 0, time.monotonic()
        while self._receipts < count:
            while sent < count and sent - self._receipts < WINDOW:
                turn = next(turns)
                if turn is None:
                    break
                device, base = turn
                topic = self._topics.begin(_name(device), secrets.token_bytes(16))
                self._connections[device % CONNECTIONS].publish(topic, self._body(base))
                sent += 1
            await self._event()
            progress(self._receipts)
        return count / (time.monotonic() - started)

    async def messages(self, count: int, *, ordinary: bool = False) -> float:
        """Send so many messages of the same size to an empty subscriber (see ``Listener``): per second."""
        await self._until(lambda: self._version is not None)
        assert self._version is not None
        body, sent = self._body(self._version), 0
        with Listener(self._address, "rate/#", ordinary=ordinary) as listener:
            started = moved_at = time.monotonic()
            arrived = 0
            while arrived < count:
                while sent < count and sent - arrived < WINDOW:
                    device = sent % (CONNECTIONS * DEVICES_EACH)
                    topic = "rate" + self._topics.begin(_name(device), secrets.token_bytes(16))[3:]
                    self._connections[device % CONNECTIONS].publish(topic, body)
                    sent += 1
                await asyncio.sleep(POLL_S)
                if listener.count > arrived:
                    arrived, moved_at = listener.count, time.monotonic()
                elif time.monotonic() - moved_at > SILENCE_S:
                    raise LichenError(f"the broker dropped {sent - arrived} of {sent} messages")
            return count / (time.monotonic() - started)

    def _turns(self) -> Iterator[tuple[int, VersionId] | None]:
        """Devices in turn, all with the turn's base: each counts once for it, so a full turn waits for
        the next version (None: not yet)."""
        served: VersionId | None = None
        while True:
            if self._version is None or self._version == served:
                yield None
                continue
            served = self._version
            for device in range(CONNECTIONS * DEVICES_EACH):
                yield device, served

    def _body(self, base: VersionId) -> bytes:
        """A ``begin`` on that base; alike for all devices, so that it costs the publishers no more to send
        updates than messages."""
        if base not in self._bodies:
            self._bodies = {base: self._packed(base)}
        return self._bodies[base]

    def _packed(self, base: VersionId) -> bytes:
        header = UpdateHeader(
            incarnation=b"flooding",
            base=base,
            codec=self._codec,
            size=len(self._payload),
            sha256=hashlib.sha256(self._payload).digest(),
            fingerprint=self._layout.fingerprint,
            num_examples=32,
            steps_done=1,
            steps_planned=1,
        )
        return header.pack(self._payload)

    def _count_connection(self) -> None:
        self._connected += 1
        self._wake.set()

    def _lost(self, reason: str) -> None:
        self._refused = self._refused or f"a connection ended: {reason}"
        self._wake.set()

    def _received(self, message: Publication) -> None:
        if message.topic == self._topics.task():
            manifest = TaskManifest.unpack(peek(message.payload, limit=MAX_TASK_BYTES))
            self._version = manifest.version
        else:
            receipt = self._words.get(message.payload)
            if receipt is None:
                receipt = self._words[message.payload] = Receipt.unpack(message.payload)
            if receipt.state == "refused":
                self._refused = f"an update of the flood was refused: {receipt.reason}"
            self._receipts += receipt.terminal
        self._wake.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._event()

    async def _event(self) -> None:
        """Wait for something to happen."""
        try:
            await asyncio.wait_for(self._wake.wait(), SILENCE_S)
        except TimeoutError:
            raise LichenError(f"the coordinator has said nothing for {SILENCE_S:.0f} s") from None
        self._wake.clear()
        if self._refused:
            raise LichenError(self._refused)


def _name(device: int) -> str:
    return f"dev-{device:05d}"
