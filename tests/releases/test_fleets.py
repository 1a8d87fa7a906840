"""Real processes of today on the state folders of an earlier release, and the tool that runs two releases."""

import re
import signal
import sqlite3
import sys
import time
from contextlib import ExitStack, closing

import pytest

from broker_coordinator.books.audit import audit
from broker_coordinator.books.ledgers import read_ledger
from broker_coordinator.embedded_broker import EmbeddedBroker
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.errors import ConfigError
from hil.processes import ManagedProcess
from hil.releases import OURS, release_of, run_course

pytestmark = pytest.mark.process

PATIENCE_S = 60.0
DEVICES = ("dev-00", "dev-01", "dev-02")
# They deliver what they have, and train no more.
GATES_SHUT = "\n[gates]\nmin_samples = 1000000000\n"


@pytest.fixture
def processes(fleet, tmp_path):
    """The coordinator and the agents, which do not run yet, on a broker that does; by name."""
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker("auto", 0, tmp_path / "broker"))
        files = [fleet / "fleet.toml", *(fleet / "devices" / device / "agent.toml" for device in DEVICES)]
        for file in files:
            file.write_text(re.sub(r"mqtt://127\.0\.0\.1:\d+", broker.url, file.read_text()))
        words = {"coordinator": ["lichen", "coordinator", "run", "fleet.toml", "--insecure"]}
        for device in DEVICES:
            words[device] = ["edge_agent", "run", "--config", f"devices/{device}/agent.toml"]
        made = {
            name: ManagedProcess(
                name, [sys.executable, "-m", *command], tmp_path / f"{name}.log", folder=fleet
            )
            for name, command in words.items()
        }
        for process in made.values():
            stack.callback(process.stop)
        yield made


def until(reached, process):
    """Wait until something is so; polls, as files send no event."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, process.last_words()
        time.sleep(0.05)


def test_what_waited_is_delivered_and_counted_once(fleet, books, processes):
    """Each update of an outbox is in the journal once, and done for its device; what waited in the journal is
    in a version, and all versions, theirs and ours, are made again bit for bit."""
    for device in DEVICES:
        path = fleet / "devices" / device / "agent.toml"
        path.write_text(path.read_text() + GATES_SHUT)
    folders = [fleet / "devices" / device / "state" for device in DEVICES]
    for process in processes.values():
        process.start()

    def delivered():
        return not any(read_ledger(folder).outbox for folder in folders)

    def folded():
        return audit(fleet / "coordinator").waiting == 0

    until(delivered, processes["coordinator"])
    until(folded, processes["coordinator"])
    for process in processes.values():
        process.stop()
    store = SqliteStore.open(fleet / "coordinator", read_only=True)
    try:
        journal = [row.update_id.hex() for row in store.rows()]
    finally:
        store.close()
    assert sorted(journal) == sorted([*(update for update, _ in books["updates"]), *books["outboxes"]])
    report = audit(fleet / "coordinator", folders)
    assert report.balanced, report.faults
    assert (report.outbox, report.done, report.folded) == (0, len(journal), len(journal))
    assert report.versions_ok == report.versions_checked >= len(books["versions"])


def test_an_agents_store_of_a_later_release_is_refused(fleet, books, processes):
    """The agent ends and says why; the store is not set aside, nor a new one begun."""
    state = fleet / "devices" / "dev-00" / "state"
    with closing(sqlite3.connect(state / "agent.db")) as database:
        database.execute("PRAGMA user_version = 1000")
    agent = processes["dev-00"]
    agent.start()
    assert agent.wait(PATIENCE_S) not in (0, -signal.SIGKILL)
    assert "newer agent" in agent.last_words()
    assert "Traceback" not in agent.log.read_text()
    assert not list(state.glob("quarantine/*"))
    with closing(sqlite3.connect(state / "agent.db")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1000,)


@pytest.mark.parametrize("course", ["upgrade", pytest.param("back", marks=pytest.mark.slow)])
def test_the_way_from_release_to_release(tmp_path, course):
    """`make test-releases` goes it with two releases; here this one stands for both, so that the way is kept
    open."""
    outcome = run_course(course, OURS, tmp_path, large=False)
    assert outcome.well, outcome.faults


def test_what_is_no_release_is_said(tmp_path):
    """Neither an installation nor a commit; and an interpreter without Lichen."""
    with pytest.raises(ConfigError, match="does not work"):
        release_of("no-such-commit", tmp_path)
    bare = tmp_path / "bin" / "python"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match="no Lichen runs"):
        release_of(str(tmp_path), tmp_path)
