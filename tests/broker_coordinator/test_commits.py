"""What is committed together: whoever dies at a commit has done all of it, or nothing."""

import pytest

import broker_coordinator.storage.sqlite_database
from broker_coordinator.storage.sqlite_store import SqliteStore


class Died(BaseException):
    """kill -9, in process: nothing catches it."""


@pytest.fixture
def deadly(monkeypatch):
    """Let commits die at a crash point."""

    def arm(point):
        def die(name):
            if name == point:
                raise Died

        monkeypatch.setattr(broker_coordinator.storage.sqlite_database, "crash_point", die)

    return arm


@pytest.mark.parametrize(
    ("point", "kept"), [("coordinator.ingest.commit", 0), ("coordinator.ingest.committed", 1)]
)
def test_a_batch_is_one_commit(fleet, deadly, point, kept):
    """The journal's row, by which an update is known again, the device's count and its sign of life: all of
    them are there or none, and either way the update counts once in the end."""
    device = fleet.device("d1")
    update = device.make(fleet.layout)
    device.begin(*update)
    deadly(point)
    with pytest.raises(Died):
        fleet.settle()
    fleet.crash()
    deadly("")
    left = SqliteStore.open(fleet.folder, read_only=True)
    record = left.device("d1")
    assert (left.outcome(update[0]) is not None) == bool(kept)
    assert (record.accepted if record is not None else 0) == kept
    left.close()
    fleet.start()
    device.begin(*update)
    fleet.settle()
    assert device.words(update[0])[-1] == "done"
    assert fleet.store.counts().accepted == 1
