"""Retention: an oldest prefix goes, its end state stays, and the rest still replays."""

from dataclasses import replace

import pytest

from broker_coordinator.audit import audit
from broker_coordinator.retention import RetentionPolicy, prune

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


def test_a_coordinator_goes_on_after_pruning(begin, long):
    """The newest state is always there: the next version is made on it."""
    _prune(long, versions=1, rows=0, bytes=0)
    long.store.close()
    again = begin(long.folder)
    again.numbers = long.numbers
    again.take(2)
    assert again.close().number == 7
    assert audit(long.folder).balanced
