"""What two releases do together: each course is a real fleet, and ends with the books of both sides."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from broker_coordinator.books.audit import AuditReport, audit
from edge_agent.samples import SampleStore
from fl_protocol.errors import LichenError
from hil.processes import ManagedProcess
from hil.releases.fleet import PATIENCE_S, ReleaseFleet
from hil.releases.installation import OURS, Release
from models.build import build_artifact
from models.zoo.forward import Network
from models.zoo.mlp import digits_artifact

__all__ = ["COURSES", "Outcome", "run_course"]

ROUNDS = 2
"""So many updates of each device are counted before a course goes on."""
_NEWER = "newer"
_ADD_A_SAMPLE = """
import sys
from edge_agent.samples import SampleStore
with SampleStore(sys.argv[1]) as samples:
    x, y = samples.training().all()
    samples.add(x[0], y[0])
"""
_ATTEMPTS = 20
_ATTEMPT_S = 3.0
Course: TypeAlias = Callable[[ReleaseFleet, Release], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a course: the books, where it came so far; one sentence for each thing that is wrong."""

    course: str
    books: AuditReport | None
    faults: tuple[str, ...]

    @property
    def well(self) -> bool:
        """Whether all went well."""
        return not self.faults


def run_course(name: str, release: Release, folder: Path, *, large: bool) -> Outcome:
    """Run a course of ``COURSES`` with another release in a new folder, which is kept."""
    faults: list[str] = []
    books: AuditReport | None = None
    try:
        with ReleaseFleet(folder, prepared_by=release, large=large) as fleet:
            COURSES[name](fleet, release)
            fleet.stop()
            books = audit(fleet.local.state, fleet.local.agent_states)
            theirs = _audited_by(release, fleet) if name == "coordinator" else None
            faults += [f"our audit: {fault}" for fault in books.faults]
            if not books.balanced and not books.faults:
                faults.append(f"the books do not balance: {books}")
            if theirs is not None:
                faults.append(f"its own audit: {theirs}")
            faults += [f"{log} holds a traceback" for log in fleet.tracebacks]
    except LichenError as error:
        faults.append(str(error))
    return Outcome(course=name, books=books, faults=tuple(faults))


def _agents(fleet: ReleaseFleet, release: Release) -> None:
    """Its agents, our coordinator, an artifact that we built."""
    artifact = fleet.local.folder / "artifact"
    shutil.rmtree(artifact)
    digits_artifact(artifact, hidden=fleet.local.options.hidden)
    fleet.start_coordinator(OURS)
    fleet.start_agents(release)
    _await_rounds(fleet)


def _coordinator(fleet: ReleaseFleet, release: Release) -> None:
    """Our agents, its coordinator, an artifact that it built."""
    fleet.start_coordinator(release)
    fleet.start_agents(OURS)
    _await_rounds(fleet)


def _upgrade(fleet: ReleaseFleet, release: Release) -> None:
    """All is of the other release and is killed while updates wait on devices and in the journal; then the
    coordinator is ours, then one agent after the other. What waited is counted. The app that
    gives a device its samples is of the other release still."""
    _run_all(fleet, release)
    waiting = _kill_with_updates_waiting(fleet, release)
    fleet.start_coordinator(OURS)
    fleet.start_agents(release)
    _await_settled(fleet, waiting)
    _await_rounds(fleet)
    for device, agent in fleet.local.agents.items():
        agent.kill()
        fleet.start_agent(device, OURS)
        _await_rounds(fleet, device)
        _add_a_sample(fleet, device, release)


def _devices_first(fleet: ReleaseFleet, release: Release) -> None:
    """The same, and the devices are upgraded first, with updates in their outboxes."""
    _run_all(fleet, release)
    waiting = _kill_with_updates_waiting(fleet, release)
    fleet.start_coordinator(release)
    fleet.start_agents(OURS)
    _await_settled(fleet, waiting)
    _await_rounds(fleet)
    fleet.local.coordinator.kill()
    fleet.start_coordinator(OURS)
    _await_rounds(fleet)


def _back(fleet: ReleaseFleet, release: Release) -> None:
    """All is ours on its stores, and then its again: it goes on, or refuses a store that is newer and leaves
    it as it is; ours goes on from there."""
    fleet.start_coordinator(OURS)
    fleet.start_agents(OURS)
    _await_rounds(fleet)
    waiting = _kill_with_updates_waiting(fleet, OURS)
    _try_back(fleet, release, fleet.local.coordinator, fleet.local.state / "coordinator.db")
    for device, agent in fleet.local.agents.items():
        _try_back(fleet, release, agent, fleet.local.agent_state(device) / "agent.db")
    fleet.start_coordinator(OURS)
    fleet.start_agents(OURS)
    _await_settled(fleet, waiting)
    _await_rounds(fleet)


def _artifact(fleet: ReleaseFleet, release: Release) -> None:
    """Our coordinator asks for what only newer builders make: averaged statistics. One agent is
    its, the others ours: it trains, or makes no update, and nobody waits for it."""
    artifact = fleet.local.folder / "artifact"
    shutil.rmtree(artifact)
    net = Network("digits", (64,))
    hidden = net.batch_norm("norm", net.linear("layer1", net.x, fleet.local.options.hidden))
    output = net.linear("layer2", net.activation("Relu", "active", hidden), 10)
    model = net.finish(output, output="logits")
    build_artifact(model, loss="softmax_cross_entropy", out=artifact, name="digits", batch_norm="averaged")
    fleet.start_coordinator(OURS)
    its, *others = fleet.local.agents
    fleet.start_agent(its, release)
    for device in others:
        fleet.start_agent(device, OURS)
    _await_rounds(fleet, *others)
    # A release that cannot train it makes no update; one that is refused was made from something else.
    ledger = fleet.ledger(its)
    if ledger is not None and (ledger.refused or ledger.destroyed):
        raise LichenError(f"{its} of {release.name} made updates that are not of this artifact: {ledger}")


COURSES: Mapping[str, Course] = {
    "agents": _agents,
    "coordinator": _coordinator,
    "upgrade": _upgrade,
    "devices-first": _devices_first,
    "back": _back,
    "artifact": _artifact,
}


def _run_all(fleet: ReleaseFleet, release: Release) -> None:
    fleet.start_coordinator(release)
    fleet.start_agents(release)
    _await_rounds(fleet)


def _await_rounds(fleet: ReleaseFleet, *devices: str) -> None:
    """Wait until updates of these devices (of all, if none is named) that are made from now on are done, and
    a version was made of some."""
    before, version = fleet.done(), fleet.version()

    def reached() -> bool:
        now = fleet.done()
        some = devices or tuple(fleet.local.agents)
        return fleet.version() > version and all(now[device] >= before[device] + ROUNDS for device in some)

    fleet.wait(f"{ROUNDS} updates of {', '.join(devices) or 'each device'} done, and a version", reached)


def _kill_with_updates_waiting(fleet: ReleaseFleet, release: Release) -> Mapping[bytes, str]:
    """Kill the coordinator of a release at a moment after which some device has an update that it cannot
    deliver; and then the agents."""
    for _ in range(_ATTEMPTS):
        fleet.wait("another version", partial(_newer_than, fleet, fleet.version()))
        fleet.local.coordinator.kill()
        # Whoever had made an update for that version makes none now: then at another.
        if fleet.waited(_ATTEMPT_S, lambda: bool(fleet.outboxes())):
            for agent in fleet.local.agents.values():
                agent.kill()
            return fleet.outboxes()
        fleet.start_coordinator(release)
    raise LichenError(f"no update was left in an outbox by {_ATTEMPTS} coordinators that were killed")


def _newer_than(fleet: ReleaseFleet, version: int) -> bool:
    return fleet.version() > version


def _await_settled(fleet: ReleaseFleet, waiting: Mapping[bytes, str]) -> None:
    """Wait until updates are done for their devices."""

    def settled() -> bool:
        ledgers = {device: fleet.ledger(device) for device in set(waiting.values())}
        return all(
            (ledger := ledgers[device]) is not None and update in ledger.done
            for update, device in waiting.items()
        )

    fleet.wait(f"{len(waiting)} updates that waited in outboxes done", settled)


def _try_back(fleet: ReleaseFleet, release: Release, process: ManagedProcess, store: Path) -> None:
    schema = _schema(store)
    said = process.log.stat().st_size
    fleet.start(process, release)

    def decided() -> bool:
        return not process.running or fleet.serves(process)

    fleet.wait(f"{process.name} of {release.name} serves or ends", decided)
    refused = not process.running
    process.kill()
    if refused and _NEWER not in process.log.read_bytes()[said:].decode(errors="replace"):
        raise LichenError(f"{process.name} of {release.name} ended: {process.last_words(3)}")
    if _schema(store) != schema:
        raise LichenError(f"{release.name} changed {store.name} from schema {schema} to {_schema(store)}")


def _add_a_sample(fleet: ReleaseFleet, device: str, release: Release) -> None:
    """An app of the release adds a sample beside our agent, and we find it."""
    path = fleet.local.agent_state(device) / "samples.db"
    with SampleStore(path) as samples:
        before = len(samples)
    done = release.run(["-P", "-c", _ADD_A_SAMPLE, str(path)], timeout_s=PATIENCE_S)
    if done.returncode:
        raise LichenError(f"an app of {release.name} adds no sample: {done.stderr.strip()[-1000:]}")
    with SampleStore(path) as samples:
        found = len(samples.training().all()[0]) + len(samples.held_out().all()[0])
        if (found, samples.damaged) != (before + 1, 0):
            raise LichenError(f"{found} of {before + 1} samples are read, {samples.damaged} were dropped")


def _schema(store: Path) -> int:
    with closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)) as database:
        (number,) = database.execute("PRAGMA user_version").fetchone()
    return int(number)


def _audited_by(release: Release, fleet: ReleaseFleet) -> str | None:
    """What the other release's audit says against the books; None where they balance."""
    folders = [str(folder) for folder in fleet.local.agent_states]
    words = ["-P", "-m", "lichen", "audit", str(fleet.local.state), "--json"]
    done = release.run([*words, *(f"--agents={folder}" for folder in folders)], timeout_s=PATIENCE_S)
    try:
        body = json.loads(done.stdout)
    except ValueError:
        return done.stderr.strip()[-1000:]
    return None if done.returncode == 0 else str(body.get("faults"))
