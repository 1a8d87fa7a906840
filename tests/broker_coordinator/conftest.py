"""A whole coordinator on the loopback broker, and devices that say what a script tells them to."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.books.audit import audit
from broker_coordinator.configuration import (
    BufferTable,
    DefenceTable,
    FleetConfiguration,
    UpdateTable,
)
from broker_coordinator.coordinator import Coordinator
from broker_coordinator.keys import open_key
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.clock import ManualClock
from fl_protocol.codec import codec_for, codec_seed
from fl_protocol.loopback import LoopbackBroker
from fl_protocol.presence import CoordinatorPresence, DevicePresence
from fl_protocol.receipt import Receipt
from fl_protocol.signed import peek
from fl_protocol.task import TaskManifest
from fl_protocol.topics import BlobTopic, DeviceTopic, FleetTopics, NamedTopic, ReceiptTopic, blob_name
from fl_protocol.transport import Connected, Received
from fl_protocol.update import UpdateHeader
from models.zoo.mlp import digits_artifact

FLEET = "lab"


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """A small MLP on the digits."""
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits", hidden=4)


@pytest.fixture(scope="session")
def large_artifact(tmp_path_factory):
    """One whose float32 updates do not fit into a message."""
    return digits_artifact(tmp_path_factory.mktemp("large") / "digits", hidden=800)


class ScriptedDevice:
    """One device on a transport: keeps what it receives, sends what it is told to."""

    def __init__(self, name, transport):
        self.name = name
        self.topics = FleetTopics(FLEET)
        self.transport = transport
        self.receipts = []
        self.commands = []
        self.blobs = {}
        self.manifests = []
        self.presences = []
        self.connected = False
        self._made = 0

    def start(self):
        self.transport.start(self.receive)

    def receive(self, event):
        if isinstance(event, Connected):
            self.connected = True
            self.transport.subscribe(list(self.topics.device_filters(self.name)))
        if not isinstance(event, Received):
            return
        topic = self.topics.parse(event.topic)
        match topic:
            case ReceiptTopic():
                self.receipts.append((topic.update_id, Receipt.unpack(event.payload)))
            case BlobTopic():
                self.blobs[(topic.address, topic.index)] = event.payload
            case NamedTopic(kind="task") | DeviceTopic(kind="task"):
                self._note_manifest(event.payload)
            case DeviceTopic(kind="command"):
                self.commands.append(event.payload)
            case NamedTopic(kind="coordinator"):
                self._note_presence(event.payload)

    @property
    def manifest(self):
        return self.manifests[-1]

    def words(self, update_id):
        """The states of an update's receipts, in order."""
        return [receipt.state for known, receipt in self.receipts if known == update_id]

    def last(self, update_id):
        """An update's newest receipt."""
        return [receipt for known, receipt in self.receipts if known == update_id][-1]

    def say(self, topic, payload, retain=False):
        assert self.transport.publish(topic, payload, retain=retain) is not None

    def birth(self, *, samples=10, seen=(0, 0), session=b"session1", incarnation=None):
        presence = DevicePresence(
            online=True,
            session=session,
            samples=samples,
            seen=seen,
            agent="0.1.0",
            incarnation=incarnation,
        )
        self.say(self.topics.state(self.name), presence.pack())

    def make(self, layout, *, codec=None, base=None, value=0.01, salt="", **changes):
        """An update on the newest manifest's version: id, header, payload."""
        self._made += 1
        update_id = hashlib.sha256(f"{self.name} {self._made} {salt}".encode()).digest()[:16]
        spec = codec or self.manifest.codec
        delta = np.full(layout.size, value, np.float32)
        payload = codec_for(spec).encode(delta, layout, codec_seed(update_id))
        header = UpdateHeader(
            incarnation=b"12345678",
            base=base or self.manifest.version,
            codec=spec,
            size=len(payload),
            sha256=hashlib.sha256(payload).digest(),
            fingerprint=layout.fingerprint,
            num_examples=10,
            steps_done=5,
            steps_planned=5,
            metrics={"before.correct": 5.0, "before.count": 10.0},
        )
        return update_id, replace(header, **changes), payload

    def begin(self, update_id, header, payload=None):
        self.say(self.topics.begin(self.name, update_id), header.pack(payload))

    def _note_manifest(self, payload):
        try:
            self.manifests.append(TaskManifest.unpack(peek(payload, limit=1 << 16)))
        except Exception:
            assert payload == b"someone else's"

    def _note_presence(self, payload):
        if payload != b"noise":
            self.presences.append(CoordinatorPresence.unpack(payload))


@pytest.fixture(scope="session")
def scripted_device():
    """The class of scripted devices, for tests on other transports."""
    return ScriptedDevice


class LoopbackFleet:
    """Broker, coordinator and devices on one manual clock."""

    def __init__(self, folder, artifact, *, disk=None, faults=None, seed=0, **tables):
        self.clock = ManualClock(1000.0)
        self.broker = LoopbackBroker(self.clock, seed=seed, faults=faults)
        self.artifact = artifact
        self.layout = artifact.layout
        self.folder = folder
        self.coordinator = None
        self.store = None
        self.transport = None
        self.options = {"disk": disk} if disk is not None else {}
        self.configuration = FleetConfiguration(
            fleet=FLEET,
            state=folder,
            artifact=artifact.path,
            **{
                "buffer": BufferTable(size=2),
                "update": UpdateTable(codec="float32"),
                "defence": DefenceTable(clip=False),
                **tables,
            },
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.signing = open_key(folder)

    def start(self, **options):
        """Start a coordinator on what the folder holds, as a new process would."""
        self.transport = self.broker.connect("coordinator", clean=False, manual_ack=True, window=64)
        self.store = SqliteStore.open(self.folder)
        self.coordinator = Coordinator(
            self.configuration,
            artifact=self.artifact,
            store=self.store,
            transport=self.transport,
            clock=self.clock,
            signing=self.signing,
            **{**self.options, **options},
        )
        self.coordinator.start()
        return self.settle()

    def crash(self):
        """The process is gone: its connection breaks, nothing is said or written any more."""
        self.transport.drop("killed")
        self.store.close()
        self.coordinator = None

    def device(self, name):
        """A device on line."""
        device = ScriptedDevice(name, self.broker.connect(name, window=64))
        device.start()
        return self.settle() and device

    def settle(self, seconds=0.0):
        """Let everything happen that is due now, or within ``seconds``."""
        until = self.clock.monotonic() + seconds
        for _ in range(10_000):
            delivered = self.broker.deliver_due()
            pause = self.coordinator.work() if self.coordinator else 1.0
            due = self.broker.next_due()
            if delivered or pause == 0 or (due is not None and due <= self.clock.monotonic()):
                continue
            left = until - self.clock.monotonic()
            if left <= 0:
                return self
            self.clock.advance(min(left, max(pause, 0.05)))
        raise AssertionError("the fleet does not come to rest")

    def contribute(self, *devices, value=0.01, **changes):
        """Each device sends one update on the newest version it knows, whole; their ids."""
        ids = []
        for device in devices:
            update = device.make(self.layout, value=value, **changes)
            device.begin(*update)
            ids.append(update[0])
        self.settle()
        return ids

    def fetched(self, device, ref):
        """What a device gets by subscribing to every chunk of a blob."""
        name = blob_name(ref.address, ref.chunk_bytes)
        device.transport.subscribe([device.topics.blob(name, index) for index in range(ref.chunk_count)])
        self.settle()
        chunks = [device.blobs.get((ref.address, index)) for index in range(ref.chunk_count)]
        return None if None in chunks else b"".join(chunks)

    def books(self):
        """The audit of its state, which must balance."""
        report = audit(self.folder)
        assert report.balanced, report.faults
        return report

    def stop(self):
        """End it, if it has not."""
        if self.coordinator is not None:
            self.transport.stop()
        if self.store is not None:  # also of a coordinator that failed to start
            self.store.close()


@pytest.fixture
def fleet_of(tmp_path, artifact):
    """Make loopback fleets; they are stopped at the end."""
    made = []

    def make(artifact=artifact, **tables):
        fleet = LoopbackFleet(tmp_path / f"state{len(made)}", artifact, **tables)
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.stop()


@pytest.fixture
def fleet(fleet_of):
    """A fleet of the small model, running: two float32 updates make a version."""
    return fleet_of().start()
