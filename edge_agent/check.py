"""``lichen-agent check``: is this device ready? Every check does the real thing, and says what to do."""

import os
import queue
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_agent.agent import build_worker
from edge_agent.belonging import foreign_authority, nobody_there
from edge_agent.configuration import AgentConfiguration
from edge_agent.gates import CLOCK_IS_SET_AFTER, LinuxMachine, shut_gate, surroundings
from edge_agent.jobs import Job, JobFailed, Prepared, PrepareJob, Progress, Result
from edge_agent.sample_count import count_samples
from edge_agent.state_folder import StateFolder
from edge_agent.status import read_status
from fl_io.clock import SystemClock
from fl_io.disk import write_file
from fl_io.mqtt import MqttTransport
from fl_protocol.artifact import MANIFEST_NAME
from fl_protocol.errors import LichenError, StorageError
from fl_protocol.presence import GetRequest
from fl_protocol.topics import FleetTopics
from fl_protocol.transport import Connected, Disconnected, Received, TransportEvent

__all__ = ["Finding", "check"]

CONNECT_S = 15.0
ANSWER_S = 5.0
RUNTIME_S = 120.0
LEAST_FREE_BYTES = 64 << 20
_MAKE_TRAINER = """
import sys
from edge_agent.trainer import load_trainer
from fl_protocol.errors import LichenError
try:
    load_trainer(*sys.argv[1:])
except LichenError as error:
    sys.exit(f"{' '.join(error.args[0].split())}\\n{error.hint}")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found; ``hint`` says what to do where it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def check(configuration: AgentConfiguration) -> Iterator[Finding]:
    """Check everything, and yield each finding as it is made."""
    yield _clock()
    yield _state(configuration)
    yield _disk(configuration.state)
    if configuration.tls.ca is not None:
        yield _fleet(configuration)
    yield from _broker(configuration)
    yield _samples(configuration)
    yield _gates(configuration)
    yield _limits(configuration.state)
    yield _runtime(configuration)


def _clock() -> Finding:
    wall = time.time()
    today = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))
    return Finding(
        name="clock",
        ok=wall > CLOCK_IS_SET_AFTER,
        detail=today,
        hint="the clock is not set: start a time service, or name the broker's authority in [tls] ca",
    )


def _state(configuration: AgentConfiguration) -> Finding:
    try:
        with StateFolder(configuration.state) as folder:
            detail = f"{folder.path}, not in use"
    except StorageError as error:
        if "held by another agent" in str(error):
            return Finding(name="state", ok=True, detail=f"{configuration.state}, an agent is running")
        return _failed("state", error)
    return Finding(name="state", ok=True, detail=detail)


def _disk(state: Path) -> Finding:
    probe = state / f".check.{secrets.token_hex(4)}"
    try:
        began = time.monotonic()
        write_file(probe, b"lichen", purpose="check")
        took = time.monotonic() - began
        probe.unlink()
        usage = os.statvfs(state)
    except (StorageError, OSError) as error:
        return _failed("disk", error)
    free = usage.f_bavail * usage.f_frsize
    return Finding(
        name="disk",
        ok=free >= LEAST_FREE_BYTES,
        detail=f"written and synced in {1000 * took:.0f} ms, {free >> 20} MiB free",
        hint=f"free some space: at least {LEAST_FREE_BYTES >> 20} MiB are needed",
    )


def _fleet(configuration: AgentConfiguration) -> Finding:
    try:
        foreign = foreign_authority(configuration)
    except LichenError as error:
        return _failed("fleet", error)
    return Finding(
        name="fleet",
        ok=not foreign,
        detail=foreign or configuration.fleet,
        hint="write its name there, or take agent.toml and certificates of one fleet",
    )


def _broker(configuration: AgentConfiguration) -> Iterator[Finding]:
    name = f"broker {configuration.address}"
    if configuration.tls.certificate is not None and _runs(configuration.state):
        yield _as_the_agent_says(name, configuration.state)
        return
    try:
        with _connection(configuration) as (transport, events):
            refused = _await(events, CONNECT_S, lambda event: isinstance(event, Connected | Disconnected))
            if not isinstance(refused, Connected):
                reason = refused.reason if isinstance(refused, Disconnected) else "no answer"
                yield Finding(name=name, ok=False, detail=reason, hint=_broker_hint(reason))
                return
            wrong = refused.date_error
            yield Finding(name=name, ok=True, detail=f"connected, although {wrong}" if wrong else "connected")
            yield from _rights(configuration, transport, events)
    except LichenError as error:
        yield _failed(name, error)


def _runs(state: Path) -> bool:
    try:
        return bool(read_status(state)["running"])
    except StorageError:
        return False


def _as_the_agent_says(name: str, state: Path) -> Finding:
    """A broker that goes by the certificate's name would throw the running agent out for a check."""
    status = read_status(state)
    says, why = status["state"], status.get("idle_reason")
    return Finding(
        name=name,
        ok=says != "offline",
        detail=f"the running agent says: {says}{f', {why}' if why else ''}",
        hint="see its log; stop it and check again, to have connection and rights tried",
    )


def _rights(
    configuration: AgentConfiguration, transport: MqttTransport, events: "queue.SimpleQueue[TransportEvent]"
) -> Iterator[Finding]:
    """Ask for the manifest: its echo proves the right to write, an answer both rights.

    MQTT 3.1.1 tells nobody that a right is missing; only what comes back does.
    """
    topics = FleetTopics(configuration.fleet)
    device = configuration.device
    get, answer, task = topics.get(device), topics.task_for(device), topics.task(configuration.task)
    transport.subscribe([*topics.device_filters(device, configuration.task), get])
    transport.publish(get, GetRequest().pack())
    seen = {event.topic for event in _collect(events, ANSWER_S, {answer}) if isinstance(event, Received)}
    answered, echoed = answer in seen, get in seen
    yield Finding(
        name="topics: write",
        ok=answered or echoed,
        detail="the coordinator answered" if answered else "came back" if echoed else "nothing came back",
        hint=f"give {device} the right to write {topics.prefix}up/{device}/#; "
        "without a coordinator there may be no proof",
    )
    there = topics.coordinator in seen
    detail = "no task has been published yet" if there else nobody_there(configuration.fleet)
    yield Finding(
        name="topics: read",
        ok=bool(seen & {answer, task, topics.coordinator}),
        detail="the task is there" if seen & {answer, task} else detail,
        hint="compare fleet in agent.toml and in the coordinator's fleet.toml, start the coordinator, and "
        f"give {device} the right to read {topics.prefix}down/{device}/# , {task} and {topics.coordinator}",
    )


def _samples(configuration: AgentConfiguration) -> Finding:
    path = configuration.samples_path
    try:
        training, held_out = count_samples(path)
    except StorageError as error:
        return _failed("samples", error)
    return Finding(
        name="samples",
        ok=training >= configuration.gates.min_samples,
        detail=f"{training} to train on, {held_out} held out in {path}",
        hint="add some: lichen-agent samples add FILE.npz, or SampleStore(path).add(x, y) in your app; "
        "a trainer that brings its own needs min_samples = 0 under [gates]",
    )


def _gates(configuration: AgentConfiguration) -> Finding:
    """Shut gates are no fault: they are what was asked for."""
    samples = configuration.gates.min_samples
    reason = shut_gate(configuration.gates, surroundings(LinuxMachine(), SystemClock(), samples))
    return Finding(name="gates", ok=True, detail=f"shut now: {reason}" if reason else "open")


def _limits(state: Path) -> Finding:
    """Those of the running agent: this command is in another group, at a prompt. None is no fault."""
    try:
        status = read_status(state)
    except StorageError:
        status = {}
    held = status.get("limits") if status.get("running") else None
    if not held:
        return Finding(name="limits", ok=True, detail="not known: no agent is running")
    said = ", ".join(f"{name} {value}" for name, value in held.items() if value not in (None, False, True))
    off = "; the kernel's memory control group is off" if held.get("memory_off") else ""
    return Finding(name="limits", ok=True, detail=f"{said}{off}")


def _runtime(configuration: AgentConfiguration) -> Finding:
    if configuration.trainer:
        return _trainer(configuration.trainer, str(configuration.trainer_path or ""))
    artifacts = [path.parent for path in (configuration.state / "artifacts").glob(f"*/{MANIFEST_NAME}")]
    if not artifacts:
        return Finding(name="runtime", ok=True, detail="not tried: no artifact has been downloaded yet")
    newest = max(artifacts, key=lambda path: path.stat().st_mtime_ns)
    results: queue.SimpleQueue[Result] = queue.SimpleQueue()

    def deliver(job: Job, result: Result) -> None:
        if not isinstance(result, Progress):
            results.put(result)

    worker = build_worker(configuration, deliver)
    try:
        worker.submit(PrepareJob(artifact_dir=str(newest), runtimes=configuration.runtimes))
        result = results.get(timeout=RUNTIME_S)
    except queue.Empty:
        result = JobFailed(reason=f"the golden steps took longer than {RUNTIME_S:.0f} s", retryable=True)
    finally:
        worker.stop()
    if isinstance(result, Prepared):
        skipped = "".join(f"; skipped {reason}" for reason in result.skipped)
        return Finding(name="runtime", ok=True, detail=f"{result.runtime}, golden steps agree{skipped}")
    reason = result.reason if isinstance(result, JobFailed) else "no answer"
    return Finding(
        name="runtime", ok=False, detail=reason, hint="install one: pip install 'lichen[onnx]', or use numpy"
    )


def _trainer(name: str, folder: str) -> Finding:
    """Make it in a process of its own: packages built for another processor may end it without a word."""
    command = [sys.executable, "-P", "-c", _MAKE_TRAINER, name, folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUNTIME_S, check=False)
    except subprocess.TimeoutExpired:
        reason = f"the trainer {name!r} is not made within {RUNTIME_S:.0f} s"
        return Finding(name="trainer", ok=False, detail=reason, hint="do the slow part in train")
    if done.returncode == 0:
        return Finding(name="trainer", ok=True, detail=f"{name} was made")
    if done.returncode < 0:
        reason = f"making the trainer {name!r} ended its process with signal {-done.returncode}"
        return Finding(name="trainer", ok=False, detail=reason, hint="are its packages for this processor?")
    *_, reason, hint = ["", "", *done.stderr.strip().splitlines()]
    return Finding(name="trainer", ok=False, detail=reason, hint=hint)


@contextmanager
def _connection(
    configuration: AgentConfiguration,
) -> "Iterator[tuple[MqttTransport, queue.SimpleQueue[TransportEvent]]]":
    """A connection under a name of its own: the device's would throw a running agent out. With a certificate
    it has that one name only; then none is running."""
    name = configuration.device if configuration.tls.certificate else f"{configuration.device}.check"
    events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    transport = MqttTransport(configuration.address, name, keepalive_s=60, tls=configuration.tls)
    transport.start(events.put)
    try:
        yield transport, events
    finally:
        transport.stop()


def _await(
    events: "queue.SimpleQueue[TransportEvent]", seconds: float, wanted: Callable[[TransportEvent], bool]
) -> TransportEvent | None:
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        try:
            event = events.get(timeout=left)
        except queue.Empty:
            return None
        if wanted(event):
            return event
    return None


def _collect(
    events: "queue.SimpleQueue[TransportEvent]", seconds: float, until: set[str]
) -> Iterable[TransportEvent]:
    """What comes within ``seconds``, or until one of these topics has spoken."""
    ends = time.monotonic() + seconds
    while (event := _await(events, ends - time.monotonic(), lambda event: True)) is not None:
        yield event
        if isinstance(event, Received) and event.topic in until:
            return


def _broker_hint(reason: str) -> str:
    if "certificate" in reason:
        return "compare [tls] ca in agent.toml with the authority that signed the broker's certificate"
    if "uthorized" in reason or "user name" in reason:
        return "the broker refuses this device: check the password in the broker's URL or [tls] certificate"
    return "is the broker running, and can this device reach it? compare broker in agent.toml"


def _failed(name: str, error: Exception) -> Finding:
    said, _, hint = str(error).partition("\n  hint: ")
    return Finding(name=name, ok=False, detail=said, hint=hint)
