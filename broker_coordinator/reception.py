"""Reception: reads each message that arrives, and hands it to what takes it.

A message that cannot be read, or that nobody takes, is counted by reason. Nothing else happens.
"""

import logging
import time
from collections.abc import Callable

from broker_coordinator.decide import OrderSeen, TaskState
from broker_coordinator.doubles import Doubles
from broker_coordinator.ingest import Batch, Ingest
from broker_coordinator.leasing import Leasing
from broker_coordinator.outgoing import Outgoing
from broker_coordinator.publication.edition import Editor
from broker_coordinator.publication.publisher import Publisher
from broker_coordinator.publication.shelf import BlobShelf
from broker_coordinator.storage.store import Store
from fl_protocol.blob import CHUNK_BYTES
from fl_protocol.errors import MessageError, ProtocolError, TransportError
from fl_protocol.presence import CoordinatorPresence, DeviceEvent, DevicePresence, GetRequest
from fl_protocol.task import TaskManifest
from fl_protocol.topics import BeginTopic, BlobTopic, ChunkTopic, DeviceTopic, FleetTopics, NamedTopic
from fl_protocol.transport import Received

__all__ = ["Reception"]

MOST_WAITING_ANSWERS = 1000
"""Requests for blobs are not answered while so much waits: receipts come first."""
MOST_REPORTS = 10_000
_log = logging.getLogger("lichen.coordinator")


class Reception:
    """Routes messages inside one commit. ``presence`` makes our own, answering the challenge given;
    ``admits`` says whether a device may say anything."""

    def __init__(
        self,
        *,
        topics: FleetTopics,
        store: Store,
        shelf: BlobShelf,
        ingest: Ingest,
        editor: Editor,
        publisher: Publisher,
        leasing: Leasing,
        outgoing: Outgoing,
        presence: Callable[[bytes], CoordinatorPresence],
        admits: Callable[[str], bool],
    ) -> None:
        self._topics = topics
        self._store = store
        self._shelf = shelf
        self._ingest = ingest
        self._editor = editor
        self._publisher = publisher
        self._leasing = leasing
        self._outgoing = outgoing
        self._presence = presence
        self._admits = admits
        self._doubles = Doubles()
        self._warned: set[str] = set()
        self._came_online: list[str] = []
        self._reports: dict[str, str] = {}
        self._successor: CoordinatorPresence | None = None
        self.online: set[str] = set()

    def take(self, batch: Batch, state: TaskState, message: Received) -> None:
        """Take one message in; its token is acknowledged after the commit, whatever it was."""
        batch.tokens.append(message.token)
        try:
            self._route(batch, state, message)
        except MessageError:
            self._reject("malformed")
        except ProtocolError:
            self._reject("topic")

    def committed(self) -> None:
        """After the commit: what must not be said before it, nor by a store that is older than the world."""
        for device in self._came_online:
            if not self._publisher.halted:
                self._leasing.came_online(device)
        self._came_online.clear()

    def undo(self) -> None:
        """After a commit that did not come about."""
        self._came_online.clear()

    def expel(self) -> None:
        """Devices that were revoked are not on line any more, whatever they say, and hold no lease."""
        with self._store.transaction():
            for record in self._store.devices():
                if record.online and not self._admits(record.device):
                    gone = DevicePresence(online=False, session=record.session)
                    self._store.device_seen(record.device, gone)
                    self.online.discard(record.device)
            for lease in self._store.leases():
                if not self._admits(lease.device):
                    self._store.end_lease(lease.lease_id)
        self._leasing.dirty = True

    def confirm_office(self) -> None:
        """Return if no coordinator of a later term was heard.

        Raises:
            TransportError: one was: this one is not in office any more.
        """
        other = self._successor
        if other is not None:
            raise TransportError(
                f"another coordinator of fleet {self._topics.fleet!r} has taken office"
                f" (session {other.session.hex()}, term {other.term})",
                hint="run one coordinator for a fleet",
            )

    def _route(self, batch: Batch, state: TaskState, message: Received) -> None:
        topic = self._topics.parse(message.topic)
        match topic:
            case BeginTopic() | ChunkTopic():
                self._ingest.receive(batch, state, topic, message.payload)
            case DeviceTopic() if not self._admits(topic.device):
                self._reject("unknown_device")
            case DeviceTopic(kind="state"):
                self._device(batch, state, topic.device, message.payload)
            case DeviceTopic(kind="event"):
                self._event(batch, state, topic.device, message.payload)
            case DeviceTopic(kind="get"):
                self._get(batch, state, topic.device, GetRequest.unpack(message.payload))
            case NamedTopic(kind="coordinator"):
                self._coordinator(batch, message)
            case NamedTopic(kind="task"):
                self._task(batch, state, message)
            case _:
                self._reject("topic")

    def _device(self, batch: Batch, state: TaskState, device: str, payload: bytes) -> None:
        if not payload:
            return
        presence = DevicePresence.unpack(payload)
        self._store.device_seen(device, presence)
        if presence.online:
            if how := self._doubles.born(device, presence):
                self._doubled(device, how)
            self.online.add(device)
            self._came_online.append(device)
            self._ingest.carry_out(batch, state, OrderSeen(order=presence.seen, device=device))
            return
        record = self._store.device(device)
        if record is not None and not record.online:
            # Only now: a will of an older session says nothing about this one.
            self.online.discard(device)

    def _doubled(self, device: str, how: str) -> None:
        self._store.note_double(device, how=how, seen_at=time.time())
        if device not in self._warned and len(self._warned) < MOST_REPORTS:
            self._warned.add(device)
            _log.warning("two live devices are called %s: %s", device, how)

    def _event(self, batch: Batch, state: TaskState, device: str, payload: bytes) -> None:
        event = DeviceEvent.unpack(payload)
        self._store.device_seen(device)
        if event.kind != "evidence":
            self._ingest.device_events[event.kind] += 1
            if event.kind == "error":
                self._note(device, event.message)
            return
        manifest = self._editor.verified(event.proof)
        if manifest is None or manifest.fleet != self._topics.fleet:
            self._reject("evidence")
            return
        self._witness(batch, state, event.proof, manifest)

    def _note(self, device: str, report: str) -> None:
        """Log what a device reports, once: a log must not grow by what one of them repeats."""
        if self._reports.get(device) == report:
            return
        if len(self._reports) >= MOST_REPORTS:
            self._reports.clear()
        self._reports[device] = report
        _log.warning("device %s reports: %r", device, report)

    def _get(self, batch: Batch, state: TaskState, device: str, request: GetRequest) -> None:
        if state.rolled_back:
            self._reject("get_rolled_back")
            return
        if len(self._outgoing) + len(batch.answers) > MOST_WAITING_ANSWERS:
            self._reject("get_busy")
            return
        if not request.blob:
            edition = self._publisher.edition
            if edition is not None:
                batch.answers.append((self._topics.task_for(device), edition.envelope))
            return
        topic = self._topics.parse(self._topics.blob(request.blob, request.index))
        if not isinstance(topic, BlobTopic) or topic.chunk_bytes != CHUNK_BYTES:
            self._reject("get_unknown")
            return
        chunk = self._shelf.chunk(topic.address, topic.chunk_bytes, topic.index)
        # An empty answer means gone: the device turns to the current manifest.
        batch.answers.append((self._topics.blob_for(device, request.blob, request.index), chunk or b""))

    def _coordinator(self, batch: Batch, message: Received) -> None:
        if not message.payload:
            return
        presence = CoordinatorPresence.unpack(message.payload)
        ours = self._presence(b"")
        if presence.session == ours.session:
            if presence.challenge == ours.session:
                self._publisher.echoed()
            elif message.retained:
                self._publisher.read_back(message.topic, message.payload)
            return
        if presence.challenge and presence.term == 0:
            batch.answers.append((message.topic, self._presence(presence.challenge).pack()))
        elif message.retained:
            self._publisher.read_back(message.topic, message.payload)
        elif (presence.epoch, presence.term) > (ours.epoch, ours.term):
            self._successor = presence

    def _task(self, batch: Batch, state: TaskState, message: Received) -> None:
        """Our own manifest, read back: if it is newer than our store, the store is an old one."""
        manifest = self._editor.verified(message.payload)
        if manifest is not None:
            self._witness(batch, state, message.payload, manifest)
        elif message.payload:
            self._reject("foreign_manifest")
        self._publisher.read_back(message.topic, message.payload)

    def _witness(self, batch: Batch, state: TaskState, envelope: bytes, manifest: TaskManifest) -> None:
        self._ingest.carry_out(batch, state, self._seen(manifest))
        if batch.rolled_back or state.rolled_back:
            self._editor.note_witnessed(envelope, manifest)

    def _seen(self, manifest: TaskManifest) -> OrderSeen:
        version = manifest.version
        # Below the horizon versions are forgotten in time: not to know one says nothing there.
        forgotten = (version.epoch, version.number) < self._store.office().horizon
        known = forgotten or self._store.base_known(version)
        return OrderSeen(order=manifest.order, proven=True, version_known=known)

    def _reject(self, reason: str) -> None:
        self._ingest.rejected[reason] += 1
