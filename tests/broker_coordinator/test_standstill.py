"""A version whose updates were set aside goes on: their devices count for it, and no other update of theirs
would be taken."""

import sqlite3

import pytest

from broker_coordinator.configuration import BufferTable


def spoil(fleet, device):
    """A bad sector under the newest update of a device, found when the coordinator starts again."""
    fleet.crash()
    with sqlite3.connect(fleet.folder / "coordinator.db") as db:
        db.execute("UPDATE updates SET payload = zeroblob(size) WHERE device = ?", (device.name,))
    db.close()
    fleet.start()


def version(fleet):
    record = fleet.coordinator.version
    return record.number, record.updates, record.closed_by


def test_a_fleet_whose_only_update_is_set_aside_goes_on(fleet_of):
    """With no setting but a buffer larger than the fleet: the same weights are a new version, once, and in
    that the device counts again. The audit makes all of them anew."""
    fleet = fleet_of(buffer=BufferTable(size=3)).start()
    device = fleet.device("d1")
    fleet.contribute(device)
    spoil(fleet, device)
    assert fleet.coordinator.figures().quarantined == 1
    weights = fleet.coordinator.weights.copy()
    fleet.settle(500)
    assert version(fleet) == (0, 0, "initial")
    fleet.settle(200)
    assert version(fleet) == (1, 0, "quarantine")
    assert (fleet.coordinator.weights == weights).all()
    fleet.settle(3600)
    assert version(fleet) == (1, 0, "quarantine")
    fleet.contribute(device)
    fleet.settle(700)
    assert version(fleet) == (2, 1, "deadline")
    assert (fleet.books().versions_checked, fleet.books().quarantined) == (2, 1)


def test_it_goes_on_where_no_deadline_is_set(fleet_of):
    """Three answer, two are folded, and the third has no second word: the version closes with the two."""
    fleet = fleet_of(buffer=BufferTable(size=3, flush_after_s=0.0)).start()
    devices = [fleet.device(name) for name in ("d1", "d2", "d3")]
    fleet.contribute(*devices[:2])
    spoil(fleet, devices[1])
    fleet.contribute(devices[2])
    assert version(fleet)[0] == 0
    fleet.settle(700)
    assert version(fleet) == (1, 2, "quarantine")
    fleet.contribute(*devices)
    assert version(fleet) == (2, 3, "size")
    assert fleet.books().versions_ok == 2


@pytest.mark.parametrize("answered", [1, 2])
def test_the_least_that_a_deadline_takes_holds(fleet_of, answered):
    """Below ``min_updates`` those that were set aside count as come, and no version is made of less."""
    fleet = fleet_of(buffer=BufferTable(size=3, min_updates=2)).start()
    devices = [fleet.device(name) for name in ("d1", "d2")]
    fleet.contribute(*devices[:answered])
    spoil(fleet, devices[0])
    fleet.settle(1300)
    assert version(fleet) == {1: (0, 0, "initial"), 2: (1, 1, "quarantine")}[answered]
