"""Retention: an oldest prefix goes, its end state stays, and the rest still replays."""

import shutil
from dataclasses import replace

import pytest
from simulated_disk import PowerCut, SimulatedDisk

from broker_coordinator.aggregation.version_state import VersionFiles
from broker_coordinator.books.audit import audit
from broker_coordinator.books.retention import RetentionPolicy, prune
from broker_coordinator.storage.sqlite_store import SqliteStore
from broker_coordinator.storage.uploads import PayloadFiles

KEEP = RetentionPolicy(versions=1000, bytes=10**9, days=1000.0)


@pytest.fixture
def long(history):
    """Six versions of two updates each; one of the payloads is a file."""
    for _ in range(6):
        history.take(1)
        assert history.open.add(history.accept(history.next(), as_file=True))
        history.store.add_uptime(86_400.0)
        history.close()
    return history


def _prune(history, **policy):
    return prune(history.store, history.payloads, history.states, replace(KEEP, **policy))


def test_nothing_goes_before_its_time(long):
    """A generous policy removes nothing."""
    assert _prune(long) == replace(_prune(long), anchor=0, states=0, rows=0)
    assert audit(long.folder).versions_checked == 6


@pytest.mark.parametrize(
    ("policy", "anchor"),
    [({"versions": 2}, 4), ({"bytes": 2 * 2 * 5308}, 4), ({"bytes": 0}, 6), ({"days": 2.5}, 3)],
)
def test_the_oldest_prefix_goes(long, policy, anchor):
    """By number, by bytes or by age; the anchor's state stays and what comes after it replays."""
    pruned = _prune(long, **policy)
    assert (pruned.anchor, pruned.states) == (anchor, anchor)
    assert [number for _, number in long.states.kept()] == list(range(anchor, 7))
    assert len(list((long.folder / "payloads").iterdir())) == 6 - anchor
    report = audit(long.folder)
    assert (report.versions_checked, report.versions_ok) == (6 - anchor, 6 - anchor)
    assert report.balanced
    assert _prune(long, **policy).states == 0


def test_rows_are_forgotten_below_the_horizon_only(long):
    """A row goes when its payload went and its base is stale; the audit knows how many went by right."""
    assert _prune(long, versions=2, rows=0).rows == 0
    long.store.raise_horizon((1, 2))
    assert _prune(long, versions=2, rows=0).rows == 4
    assert _prune(long, versions=2, rows=0).rows == 0
    report = audit(long.folder)
    assert (report.accepted, report.forgotten, report.balanced) == (8, 4, True)
    assert sum(record.forgotten for record in long.store.devices()) == 4


def test_pruning_does_not_go_through_what_was_dropped(long):
    """With nothing to do it takes the same work however many rows were dropped before: rows pile up for a
    long time, and pruning comes every few seconds."""

    def steps():
        count = [0]

        def tick():
            count[0] += 1

        connection = long.store._database._connection
        connection.set_progress_handler(tick, 1)
        _prune(long, versions=2)
        connection.set_progress_handler(None, 1)
        return count[0]

    _prune(long, versions=2)
    few = steps()
    for _ in range(60):
        long.take(2)
        long.close()
    _prune(long, versions=2)
    assert steps() <= few + 50


def test_many_rows_are_forgotten_in_parts(long, monkeypatch):
    """All that may go are gone after one pruning, whatever goes at a time."""
    from broker_coordinator.storage import sqlite_versions

    monkeypatch.setattr(sqlite_versions, "_FORGET_AT_ONCE", 3)
    long.store.raise_horizon((1, 5))
    assert _prune(long, versions=2, rows=0).rows == 8
    assert long.store.office().forgotten == 8
    assert audit(long.folder).balanced


def test_a_coordinator_goes_on_after_pruning(begin, long):
    """The newest state is always there: the next version is made on it."""
    _prune(long, versions=1, rows=0, bytes=0)
    long.store.close()
    again = begin(long.folder)
    again.numbers = long.numbers
    again.take(2)
    assert again.close().number == 7
    assert audit(long.folder).balanced


def _cut_short(folder, disk):
    """Prune a copy of a history, perhaps not to the end; the power goes and comes back."""
    policy = replace(KEEP, versions=2)
    store = SqliteStore.open(folder)
    try:
        prune(store, PayloadFiles(folder, disk=disk), VersionFiles(folder, disk=disk), policy)
    except PowerCut:
        pass
    finally:
        store.close()
    operations = disk.operations
    disk.crash()
    return operations


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_between_any_two_removals_costs_nothing_that_is_kept(long, tmp_path, seed):
    """Rows go first, then files: what comes back is swept at the next start, and the rest still replays."""
    long.store.close()
    total = _cut_short(shutil.copytree(long.folder, tmp_path / "whole"), SimulatedDisk(seed=seed))
    assert total > 4
    for cut in range(1, total + 1):
        folder = shutil.copytree(long.folder, tmp_path / str(cut))
        _cut_short(folder, SimulatedDisk(seed=seed, cut=cut))
        report = audit(folder)
        assert (report.balanced, report.versions_ok) == (True, 2), report.faults
        store = SqliteStore.open(folder)
        PayloadFiles(folder).sweep(parts=(), payloads=store.payload_files())
        prune(store, PayloadFiles(folder), VersionFiles(folder), replace(KEEP, versions=2))
        store.close()
        assert len(list((folder / "payloads").iterdir())) == 2
        assert [number for _, number in VersionFiles(folder).kept()] == [4, 5, 6]
