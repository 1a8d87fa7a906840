"""A version whose updates were set aside goes on: their devices count for it, and no other update of theirs
would be taken."""

import sqlite3

import pytest

from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.configuration import AggregatorTable, BufferTable, ServerTable
from fl_protocol.errors import CodecError


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


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_a_fleet_whose_only_update_is_set_aside_goes_on(fleet_of, optimizer):
    """With no setting but a buffer larger than the fleet: the same weights are a new version, once, and in
    that the device counts again. The audit makes all of them anew."""
    fleet = fleet_of(buffer=BufferTable(size=3), server=ServerTable(optimizer=optimizer)).start()
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
    """Both that a version waits for came, and neither can be folded."""
    fleet = fleet_of(buffer=BufferTable(size=2, flush_after_s=0.0)).start()
    devices = [fleet.device(name) for name in ("d1", "d2")]
    for device in devices:
        fleet.contribute(device)
        spoil(fleet, device)
    assert version(fleet)[0] == 0
    fleet.settle(700)
    assert version(fleet) == (1, 0, "quarantine")
    fleet.contribute(*devices)
    assert version(fleet) == (2, 2, "size")
    assert fleet.books().versions_ok == 2


@pytest.mark.parametrize("flush_after_s", [0.0, 60.0])
def test_no_version_is_made_of_less_than_its_rule_needs(fleet_of, flush_after_s):
    """One attacker whose companions were set aside would be a median alone."""
    table = BufferTable(size=3, min_updates=3, flush_after_s=flush_after_s)
    fleet = fleet_of(buffer=table, aggregator=AggregatorTable(kind="median")).start()
    devices = [fleet.device(name) for name in ("d1", "d2", "d3", "d4", "d5")]
    for device in devices[:2]:
        fleet.contribute(device)
        spoil(fleet, device)
    fleet.contribute(devices[2], value=50.0)
    fleet.settle(1300)
    assert version(fleet) == (0, 0, "initial")
    fleet.contribute(*devices[3:])
    fleet.settle(100)
    assert version(fleet)[:2] == (1, 3)


def test_updates_that_are_set_aside_do_not_put_off_the_deadline(fleet_of):
    """One comes before the time of the last is over, again and again."""

    def broken(*_):
        raise CodecError("a bad sector")

    fleet = fleet_of(buffer=BufferTable(size=9, flush_after_s=60.0)).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fold, "add_decoded", broken)
        for name in ("d1", "d2", "d3"):
            fleet.contribute(fleet.device(name))
            fleet.settle(35)
    assert fleet.coordinator.figures().quarantined > 0
    assert version(fleet)[0] == 1
