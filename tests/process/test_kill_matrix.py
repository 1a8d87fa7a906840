"""kill -9 at the places that matter most, one a run, with real processes and both brokers.

``test_crash_points.py`` passes all of them, many a run; here what a death leads to is seen by itself.
"""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker_coordinator.books.audit import AuditReport, audit
from hil.local_fleet import FleetOptions, LocalFleet
from hil.processes import ManagedProcess

pytestmark = pytest.mark.process

BROKERS = ["mosquitto", "amqtt"]
VERSIONS = 5
PATIENCE_S = 60.0

AGENT_POINTS = [
    ("mosquitto", "agent.update.committed"),
    ("amqtt", "agent.training"),
    ("amqtt", "agent.delivered"),
    ("amqtt", "agent.settle.commit"),
]
COORDINATOR_POINTS = [
    ("mosquitto", "coordinator.ingest.committed"),
    ("amqtt", "coordinator.ingest.commit"),
    ("amqtt", "coordinator.acknowledged"),
    ("amqtt", "coordinator.version.commit"),
    ("amqtt", "publish.manifest"),
]
LARGE_POINTS = [("mosquitto", "agent.chunk"), ("amqtt", "coordinator.part.durable")]


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., LocalFleet]]:
    """Makes prepared fleets of three devices; all their processes end with the test."""
    fleets: list[LocalFleet] = []

    def make(broker: str, **options: object) -> LocalFleet:
        fleet = LocalFleet(
            tmp_path / f"fleet-{len(fleets)}",
            FleetOptions(
                devices=3,
                versions=VERSIONS,
                broker=broker,
                runtime="numpy",
                settings={"buffer": {"size": 2}, "plan": {"epochs": 1}},
                **options,  # type: ignore[arg-type]
            ),
        )
        fleets.append(fleet)
        fleet.prepare()
        return fleet

    yield make
    for fleet in fleets:
        fleet.stop()


def await_death(process: ManagedProcess) -> None:
    """Wait until a process has killed itself at its crash point."""
    process.wait(PATIENCE_S)
    assert process.exit_code == -signal.SIGKILL, process.last_words()


def finish(fleet: LocalFleet) -> AuditReport:
    """Let the run come to its end by itself, end the rest, and read the books."""
    assert fleet.coordinator.wait(PATIENCE_S) == 0, fleet.coordinator.last_words()
    assert fleet.status()["version"] == VERSIONS
    fleet.stop()
    return audit(fleet.state, fleet.agent_states)


def assert_balanced(books: AuditReport) -> None:
    """Nothing lost, nothing counted twice, every version reproduced bit for bit."""
    assert books.balanced, books.faults
    assert (books.lost, books.duplicated, books.replay_ok) == (0, 0, True)
    assert books.versions_checked >= VERSIONS


@pytest.mark.parametrize(("broker", "point"), AGENT_POINTS)
def test_an_agent_killed_anywhere_loses_and_repeats_nothing(make_fleet, broker, point):
    """Training, outbox commit, upload, between PUBACK and receipt, at the receipt: one device dies there."""
    fleet = make_fleet(broker)
    victim, *others = fleet.agents.values()
    fleet.coordinator.start()
    victim.start({"LICHEN_CRASH_POINT": point})
    await_death(victim)
    for agent in (victim, *others):
        agent.start()
    assert_balanced(finish(fleet))


@pytest.mark.parametrize(("broker", "point"), COORDINATOR_POINTS)
def test_a_coordinator_killed_anywhere_resumes_by_itself(make_fleet, broker, point):
    """Ingest, commit, receipt, version file, transaction, publishing: it dies there, once, mid-run."""
    fleet = make_fleet(broker)
    fleet.coordinator.start({"LICHEN_CRASH_POINT": f"{point}:2"})
    for agent in fleet.agents.values():
        agent.start()
    await_death(fleet.coordinator)
    fleet.coordinator.start()
    assert_balanced(finish(fleet))


@pytest.mark.parametrize(("broker", "point"), LARGE_POINTS)
def test_a_large_upload_survives_a_kill_on_either_side(make_fleet, broker, point):
    """A payload of 300 KB goes up in chunks; who dies in its middle finds the rest still wanted."""
    fleet = make_fleet(broker, hidden=1024, codec="float32")
    victim = fleet.coordinator if point.startswith("coordinator") else fleet.agents["dev-00"]
    for process in (fleet.coordinator, *fleet.agents.values()):
        process.start({"LICHEN_CRASH_POINT": f"{point}:2"} if process is victim else None)
    await_death(victim)
    victim.start()
    assert_balanced(finish(fleet))


@pytest.mark.parametrize("broker", BROKERS)
def test_a_broker_that_comes_back_empty_is_filled_again(make_fleet, broker):
    """The broker is killed in mid-run and forgets every session and retained message."""
    fleet = make_fleet(broker)
    fleet.start()
    deadline = time.monotonic() + PATIENCE_S
    while fleet.status().get("version", 0) < 2:
        assert time.monotonic() < deadline, fleet.coordinator.last_words()
        time.sleep(0.05)
    fleet.embedded.kill()
    fleet.embedded.start()
    assert_balanced(finish(fleet))
