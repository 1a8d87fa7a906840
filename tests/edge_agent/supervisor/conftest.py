"""A small world on a manual clock: one supervisor, a broker in memory and a coordinator with a script."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.configuration import AgentConfiguration
from edge_agent.jobs import JobFailed, Prepared, PrepareJob, Trained, TrainJob, Verified, VerifyJob
from edge_agent.presence import Presence
from edge_agent.samples import SampleStore
from edge_agent.state_folder import StateFolder
from edge_agent.supervisor import Supervisor
from fl_io.disk import DISK, Disk
from fl_io.ed25519 import new_private_key, public_key_text, read_public_key, signer, verifier
from fl_protocol.artifact import ArtifactManifest, Input, Parameter
from fl_protocol.blob import BlobRef
from fl_protocol.clock import ManualClock
from fl_protocol.command import Command
from fl_protocol.errors import SignatureError
from fl_protocol.loopback import LoopbackBroker
from fl_protocol.plan import TrainingPlan
from fl_protocol.presence import CoordinatorPresence, DeviceEvent, DevicePresence, GetRequest
from fl_protocol.ranges import ByteRanges
from fl_protocol.receipt import Receipt
from fl_protocol.signed import COMMAND_CONTEXT, TASK_CONTEXT, open_envelope, seal
from fl_protocol.task import Pacing, TaskManifest
from fl_protocol.topics import BeginTopic, ChunkTopic, DeviceTopic, FleetTopics, blob_name
from fl_protocol.transport import Connected, Received
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId

DEVICE = "dev-1"
FLEET = "test"


class Script:
    """What the worker will answer; tests change it. Signatures are really checked."""

    def __init__(self) -> None:
        self.jobs = []
        self.payload = bytes(range(200))
        self.failures: list[JobFailed] = []
        self.hold: bool | type | None = False
        """Whether trainings (or jobs of this kind) wait for ``release``."""
        self.cancelled = 0
        self.device_state = b""
        """What trainings leave of personal tensors."""
        self.codec_state = b""
        """What encodings leave out."""
        self.runtime = "numpy"
        """What trainings say that they ran on."""

    def run(self, job):
        """The result of a job."""
        if self.failures and not isinstance(job, VerifyJob):
            return self.failures.pop(0)
        match job:
            case VerifyJob():
                try:
                    trusted = verifier(read_public_key(key) for key in job.trusted_keys)
                    open_envelope(job.context, job.envelope, trusted, limit=1 << 20)
                except SignatureError as error:
                    return Verified(ok=False, reason=str(error))
                return Verified(ok=True)
            case PrepareJob():
                assert (Path(job.artifact_dir) / "manifest.json").exists()
                return Prepared(runtime="numpy")
            case TrainJob():
                assert Path(job.weights_path).exists()
                return Trained(
                    update_id=job.update_id,
                    payload=self.payload,
                    num_examples=12,
                    steps_done=3,
                    steps_planned=3,
                    metrics={"before.loss": 2.5, "before.count": 3.0},
                    runtime=self.runtime,
                    device_state=self.device_state,
                    codec_state=self.codec_state,
                )


class ScriptedWorker:
    """A worker that delivers at once, or when the test says ``release``."""

    def __init__(self, deliver, script: Script) -> None:
        self._deliver = deliver
        self.script = script
        self.job = None

    @property
    def busy(self) -> bool:
        return self.job is not None

    @property
    def process_id(self):
        return None

    def submit(self, job) -> None:
        assert not self.busy
        self.script.jobs.append(job)
        self.job = job
        held = TrainJob if self.script.hold is True else self.script.hold
        if not (held and isinstance(job, held)):
            self.release()

    def release(self) -> None:
        job, self.job = self.job, None
        self._deliver(job, self.script.run(job))

    def cancel(self) -> None:
        if self.busy:
            self.script.cancelled += 1
            job, self.job = self.job, None
            self._deliver(job, JobFailed(reason="cancelled", retryable=True))

    def stop(self) -> None:
        self.cancel()


class ScriptedCoordinator:
    """Publishes what the test says, answers ``begin`` and ``get``, and writes down all it hears."""

    def __init__(self, broker: LoopbackBroker, *, key: bytes | None) -> None:
        self.topics = FleetTopics(FLEET)
        self.sign = signer(key) if key else (lambda content: (b"", b""))
        self.session = b"session1"
        self.counter = 0
        self.artifact_name = "toy"
        self.heard: list[Received] = []
        self.begins: list[tuple[bytes, UpdateHeader, bytes | None]] = []
        self.chunks: list[tuple[int, bytes]] = []
        self.births: list[DevicePresence] = []
        self.events: list[DeviceEvent] = []
        self.gets: list[GetRequest] = []
        self.payloads: dict[bytes, bytes] = {}
        self.answers_gets = False
        self.answer: Callable[[bytes, UpdateHeader, bytes | None], Receipt | None] = self.accept
        self.blobs: dict[str, bytes] = {}
        self.manifest = b""
        self.broker = broker
        self.transport = broker.connect("coordinator", clean=False)
        self.transport.start(self.receive)

    def accept(self, update_id, header, payload) -> Receipt | None:
        """The usual answer: take what comes, ask for what does not."""
        if payload is not None:
            self.payloads[update_id] = payload
        if update_id in self.payloads:
            return self.receipt("done")
        return self.receipt("open", missing=ByteRanges(((0, header.size),)), credit=1 << 20)

    def receipt(self, state: str, **fields) -> Receipt:
        return Receipt(state=state, epoch=1, term=1, **fields)

    def receive(self, event) -> None:
        if isinstance(event, Connected):
            self.transport.subscribe(self.topics.coordinator_filters())
        if not isinstance(event, Received):
            return
        self.heard.append(event)
        match self.topics.parse(event.topic):
            case BeginTopic(_, update_id):
                header, payload = UpdateHeader.unpack(event.payload)
                self.begins.append((update_id, header, payload))
                receipt = self.answer(update_id, header, payload)
                if receipt is not None:
                    self.say(self.topics.receipt(DEVICE, update_id), receipt.pack())
            case ChunkTopic(_, update_id, offset):
                self.chunks.append((offset, event.payload))
            case DeviceTopic("state", _):
                self.births.append(DevicePresence.unpack(event.payload))
            case DeviceTopic("event", _):
                self.events.append(DeviceEvent.unpack(event.payload))
            case DeviceTopic("get", _):
                self.answer_get(GetRequest.unpack(event.payload))

    def answer_get(self, request: GetRequest) -> None:
        self.gets.append(request)
        if not self.answers_gets:
            return
        if not request.blob:
            self.say(self.topics.task_for(DEVICE), self.manifest)
        else:
            chunk = self.blobs.get(f"{request.blob}/{request.index}", b"")
            self.say(self.topics.blob_for(DEVICE, request.blob, request.index), chunk)

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert self.transport.publish(topic, payload, retain=retain) is not None

    def present(self, session: bytes | None = None, *, retain: bool = True) -> None:
        self.session = session or self.session
        body = CoordinatorPresence(session=self.session, epoch=1, term=1).pack()
        self.say(self.topics.coordinator, body, retain=retain)

    def publish_blob(self, content: bytes, *, retain: bool = True) -> BlobRef:
        ref = BlobRef.of(content)
        name = blob_name(ref.address, ref.chunk_bytes)
        for index in range(ref.chunk_count):
            start, end = ref.chunk_range(index)
            self.blobs[f"{name}/{index}"] = content[start:end]
            if retain:
                self.say(self.topics.blob(name, index), content[start:end], retain=True)
        return ref

    def publish_version(
        self, number: int = 1, *, weights: bytes | None = None, retain: bool = True, **changes
    ) -> TaskManifest:
        """Publish an artifact (always the same), weights and the signed manifest."""
        files = {name: self.publish_blob(name.encode() * 50, retain=retain) for name in ("step.onnx",)}
        files["weights.bin"] = BlobRef.of(b"never published")
        artifact = ArtifactManifest(
            name=self.artifact_name,
            loss="mse",
            metrics=(),
            optimizer="sgd",
            slots=(),
            hyper={},
            parameters=(Parameter(name="w", shape=(4, 3)),),
            inputs=(Input(name="x", shape=(-1, 4), dtype="float32"),),
            files=files,
        )
        self.counter += 1
        manifest = TaskManifest(
            fleet=FLEET,
            task="main",
            counter=self.counter,
            term=1,
            version=VersionId(epoch=1, number=number, digest=hashlib.sha256(b"%d" % number).digest()[:16]),
            artifact=self.publish_blob(artifact.to_json(), retain=retain),
            weights=self.publish_blob(weights or bytes([number % 256]) * 48, retain=retain),
            fingerprint=artifact.layout.fingerprint,
            plan=TrainingPlan(),
            codec="float32",
            pacing=Pacing(),
        )
        manifest = replace(manifest, **changes)
        self.publish_manifest(manifest, retain=retain)
        return manifest

    def publish_manifest(self, manifest: TaskManifest, *, retain: bool = True) -> None:
        self.manifest = seal(TASK_CONTEXT, manifest.pack(), self.sign)
        self.say(self.topics.task(), self.manifest, retain=retain)

    def command(self, kind: str, sequence: int, *, term: int = 1, **fields) -> bytes:
        body = Command(kind=kind, device=DEVICE, term=term, sequence=sequence, **fields).pack()
        envelope = seal(COMMAND_CONTEXT, body, self.sign)
        self.say(self.topics.command(DEVICE), envelope)
        return envelope


class StillMachine:
    """A machine that a test sets."""

    def __init__(self) -> None:
        self.mains: bool | None = None
        self.degrees: float | None = None

    def on_mains(self):
        return self.mains

    def temperature_c(self):
        return self.degrees

    def load(self):
        return 0.0

    def free_memory_mb(self):
        return None

    def battery(self):
        return None


class World:
    """One device and its coordinator on one clock."""

    def __init__(self, folder: Path, *, signed: bool = True, disk: Disk = DISK, **settings) -> None:
        self.clock = ManualClock(1000.0)
        self.broker = LoopbackBroker(self.clock)
        self.key = new_private_key() if signed else None
        self.coordinator = ScriptedCoordinator(self.broker, key=self.key)
        self.script = Script()
        self.machine = StillMachine()
        self.folder = folder
        self.disk = disk
        self.watchdog = None
        trust = {"trusted_keys": (public_key_text(self.key),)} if self.key else {"insecure": True}
        self.configuration = AgentConfiguration(
            **{
                "device": DEVICE,
                "fleet": FLEET,
                "broker": "mqtt://127.0.0.1",
                "state": folder,
                **trust,
                **settings,
            }
        )
        folder.mkdir(exist_ok=True)
        with SampleStore(self.configuration.samples_path) as store:
            store.extend([[float(i)] * 4 for i in range(40)], [[0.0]] * 40)
        self.agent: Supervisor | None = None
        self.pump()

    def boot(self) -> Supervisor:
        """Start the agent, as a process would."""
        self.workers: list[ScriptedWorker] = []
        self.state = StateFolder(self.folder, disk=self.disk)
        self.outbox = self.state.open_outbox(
            max_bytes=self.configuration.outbox.max_bytes,
            max_age_s=self.configuration.outbox.max_age_s,
            clock=self.clock,
        )
        presence = Presence(FleetTopics(FLEET), DEVICE)
        self.transport = self.broker.connect(DEVICE, will=presence.will)
        self.agent = Supervisor(
            self.configuration,
            transport=self.transport,
            presence=presence,
            clock=self.clock,
            folder=self.state,
            outbox=self.outbox,
            make_worker=self._worker,
            watchdog=self.watchdog,
            machine=self.machine,
            disk=self.disk,
            chance=random.Random(7),
        )
        self.agent.start()
        self.pump()
        return self.agent

    def shut_down(self) -> None:
        """Stop the agent cleanly."""
        if self.agent is not None:
            self.agent.close()
            self.state.close()
            self.agent = None
        self.pump()

    def kill(self) -> None:
        """What is left after kill -9: nothing but the files."""
        self.transport.drop("killed")
        self.transport.stop()
        self.outbox._db.close()
        self.state.close()
        self.agent = None
        self.pump()

    def pump(self) -> float:
        """Let everything happen that happens now; seconds until the agent wants to work again."""
        while True:
            moved = self.broker.deliver_due()
            wait = self.agent.work() if self.agent is not None else 1e9
            if not moved and not self.broker.deliver_due():
                return max(wait, 0.001)

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen when it is due."""
        end = self.clock.monotonic() + seconds
        while True:
            wait = self.pump()
            now = self.clock.monotonic()
            due = self.broker.next_due()
            step = min(wait, end - now, (due - now) if due is not None else wait)
            if end - now <= 1e-9:
                return
            self.clock.advance(step)

    @property
    def worker(self) -> ScriptedWorker:
        """The worker that trains; one that checks commands meanwhile comes behind it in ``workers``."""
        return self.workers[0]

    def _worker(self, deliver) -> ScriptedWorker:
        self.workers.append(ScriptedWorker(deliver, self.script))
        return self.workers[-1]


@pytest.fixture
def make_world(tmp_path):
    """Make a world; keyword arguments are keys of ``agent.toml``."""
    worlds = []

    def make(**settings) -> World:
        worlds.append(World(tmp_path / f"state-{len(worlds)}", **settings))
        return worlds[-1]

    yield make
    for world in worlds:
        world.shut_down()


@pytest.fixture
def world(make_world) -> World:
    """A world with signatures."""
    return make_world()
