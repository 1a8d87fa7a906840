"""Stores of earlier releases, killed while updates waited on both sides, are opened by today's code."""

import hashlib
import shutil
import sqlite3
from collections import Counter
from contextlib import closing

import pytest

from broker_coordinator.books.audit import audit
from broker_coordinator.storage.schema import MIGRATIONS
from broker_coordinator.storage.sqlite_store import SqliteStore
from edge_agent.outbox import Outbox
from edge_agent.samples import SampleStore
from fl_io.clock import SystemClock
from fl_protocol.errors import StorageError
from fl_protocol.update import UpdateHeader

DEVICES = ("dev-00", "dev-01", "dev-02")


def schema(path):
    """The number of a database's schema."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute("PRAGMA user_version").fetchone()[0]


def states(fleet):
    """The state folders of the devices."""
    return [fleet / "devices" / device / "state" for device in DEVICES]


def balanced(fleet, books):
    """Audit both sides against what was frozen; every version is made again, bit for bit."""
    report = audit(fleet / "coordinator", states(fleet))
    assert report.balanced, report.faults
    counts = Counter(state for _, state in books["updates"])
    assert (report.accepted, report.waiting) == (len(books["updates"]), counts["waiting"])
    assert (report.folded, report.versions_ok) == (counts["folded"], len(books["versions"]) - 1)
    assert (report.outbox, report.lost, report.duplicated) == (len(books["outboxes"]), 0, 0)


def test_the_material_has_updates_in_every_place(books):
    """Else the other tests show nothing."""
    assert {state for _, state in books["updates"]} == {"waiting", "folded"}
    assert books["outboxes"]


def test_a_store_is_audited_as_it_is(fleet, books):
    """Before any coordinator of today has run on it, and without a change to it: one of its own release may
    be running."""
    path = fleet / "coordinator" / "coordinator.db"
    before = schema(path)
    balanced(fleet, books)
    assert schema(path) == before


def test_a_coordinators_store_becomes_todays(fleet, books):
    """Its journal and its versions are what they were."""
    store = SqliteStore.open(fleet / "coordinator")
    try:
        assert [[row.update_id.hex(), row.state] for row in store.rows()] == books["updates"]
        versions = sorted((version.number, version.digest.hex()) for version in store.versions())
        assert [list(version) for version in versions] == books["versions"]
    finally:
        store.close()
    assert schema(fleet / "coordinator" / "coordinator.db") == len(MIGRATIONS)
    balanced(fleet, books)


@pytest.mark.parametrize("device", DEVICES)
def test_an_agents_store_becomes_todays(fleet, books, device):
    """What waited waits, whole, under its id; what the device made it does not make again."""
    state = fleet / "devices" / device / "state"
    outbox = Outbox(state / "agent.db", max_bytes=1 << 20, max_age_s=86_400, clock=SystemClock())
    try:
        entries = outbox.entries()
        expected = {update for update, owner in books["outboxes"].items() if owner == device}
        assert {entry.update_id.hex() for entry in entries} == expected
        for entry in entries:
            header, _ = UpdateHeader.unpack(entry.header)
            payload = outbox.payload_range(entry.update_id, 0, entry.size)
            assert hashlib.sha256(payload).digest() == header.sha256
            assert outbox.made_update_for(header.base)
        counts = outbox.counts()
        assert counts.created == counts.done + len(entries)
        assert outbox.device_state(bytes(32)) is None
    finally:
        outbox.close()
    balanced(fleet, books)


@pytest.mark.parametrize("device", DEVICES)
def test_samples_are_those_that_were_added(fleet, books, device):
    """The same share is held out, and the store takes more."""
    with SampleStore(fleet / "devices" / device / "state" / "samples.db") as samples:
        training, held_out = samples.training(), samples.held_out()
        assert len(samples) == len(training) + len(held_out) == books["samples"]
        x, y = training.all()
        assert len(x) == len(y) == len(training)
        assert samples.damaged == 0
        samples.add(x[0], y[0])
        assert len(samples) == books["samples"] + 1


def test_a_coordinators_store_of_a_later_release_is_refused(fleet, books):
    """By whoever writes and whoever reads; it is not set aside as damaged, and opens where it came from."""
    path = fleet / "coordinator" / "coordinator.db"
    SqliteStore.open(path.parent).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    for read_only in (False, True):
        with pytest.raises(StorageError, match="newer version of Lichen"):
            SqliteStore.open(path.parent, read_only=read_only)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    balanced(fleet, books)


def test_an_interrupted_migration_is_as_if_it_had_not_begun(fleet, books, monkeypatch):
    """A step that fails in its middle leaves the schema before it, and the next start does it."""
    broken = (*MIGRATIONS, "CREATE TABLE half (one INTEGER); THIS IS NOT SQL;")
    copy = fleet.with_name("copy")
    shutil.copytree(fleet / "coordinator", copy)
    monkeypatch.setattr("broker_coordinator.storage.sqlite_database.MIGRATIONS", broken)
    with pytest.raises(StorageError):
        SqliteStore.open(copy)
    monkeypatch.undo()
    assert schema(copy / "coordinator.db") == len(MIGRATIONS)
    store = SqliteStore.open(copy)
    try:
        assert len(list(store.rows())) == len(books["updates"])
    finally:
        store.close()
