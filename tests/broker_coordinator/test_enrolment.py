"""Enrolment: whom a running coordinator takes messages from."""

import os

import pytest

from broker_coordinator.configuration import IdentityTable, SelectionTable
from broker_coordinator.enrolment import Enrolment
from broker_coordinator.fleet.registry import EnrolledDevice, Registry, write_registry
from fl_protocol.errors import ConfigError, StorageError

NOW = "2026-01-01T00:00:00+00:00"


def registry_of(*devices):
    made = Registry(fleet="lab")
    for number, device in enumerate(devices):
        made = made.enrolled(EnrolledDevice(device=device, serial=f"{number:x}", enrolled=NOW))
    return made


@pytest.fixture
def registry(tmp_path):
    """The file of a registry with d1, d2 and d3."""
    path = tmp_path / "registry.json"
    write_registry(path, registry_of("d1", "d2", "d3"))
    return path


def test_without_a_registry_everyone_is_taken():
    """The broker's rights decide then."""
    enrolment = Enrolment("lab", None)
    assert enrolment.admits("anyone")
    assert enrolment.enrolled is None
    assert not enrolment.refresh()


def test_a_change_is_seen_when_it_is_looked_for(registry):
    """Once; and only who may take part matters."""
    enrolment = Enrolment("lab", registry)
    assert [enrolment.admits(name) for name in ("d1", "d4")] == [True, False]
    assert not enrolment.refresh()
    write_registry(registry, registry_of("d1", "d2", "d3").revoked("d1", NOW))
    assert enrolment.refresh()
    assert not enrolment.admits("d1")
    assert enrolment.enrolled == 2
    assert not enrolment.refresh()


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), os.remove])
def test_a_registry_that_cannot_be_read_any_more_leaves_the_last_one(registry, damage):
    """Nobody is let in and nobody shut out by a damaged file; it is said."""
    enrolment = Enrolment("lab", registry)
    damage(registry)
    assert not enrolment.refresh()
    assert enrolment.admits("d1")
    assert str(registry) in enrolment.fault
    write_registry(registry, registry_of("d2"))
    assert enrolment.refresh()
    assert (enrolment.admits("d1"), enrolment.fault) == (False, "")


def test_a_coordinator_does_not_start_without_the_registry_it_was_told_of(registry):
    """Nor with another fleet's."""
    with pytest.raises(ConfigError, match="of fleet 'lab', not of 'other'"):
        Enrolment("other", registry)
    with pytest.raises(StorageError, match="cannot read"):
        Enrolment("lab", registry.with_name("nowhere.json"))


def test_a_revoked_device_is_shut_out_and_what_it_gave_stays(fleet_of, registry):
    """Its lease ends, it is not on line, its updates are refused by name, all else it says is counted."""
    fleet = fleet_of(
        identity=IdentityTable(registry=registry),
        selection=SelectionTable(kind="train", in_flight=2),
    ).start()
    first, second, stranger = fleet.device("d1"), fleet.device("d2"), fleet.device("mallory")
    for device in (first, second, stranger):
        device.birth()
    fleet.settle()
    assert {lease.device for lease in fleet.store.leases()} == {"d1", "d2"}
    (kept,) = fleet.contribute(first)
    assert first.words(kept) == ["done"]
    large = first.make(fleet.layout)
    write_registry(registry, registry_of("d1", "d2", "d3").revoked("d1", NOW))
    first.begin(*large)
    first.birth(session=b"again...")
    fleet.settle()
    assert (first.last(large[0]).state, first.last(large[0]).reason) == ("refused", "unknown_device")
    # The word on what was accepted stands.
    assert first.words(kept) == ["done"]
    assert not fleet.store.device("d1").online
    assert {lease.device for lease in fleet.store.leases()} == {"d2"}
    fleet.contribute(second)
    figures = fleet.coordinator.figures()
    assert (figures.version, figures.devices_online, figures.devices_enrolled) == (1, 1, 2)
    assert figures.rejected["unknown_device"] == 2  # one birth of hers, and one of mallory's
    assert fleet.store.device("mallory") is None
    fleet.books()


def test_an_upload_under_way_ends_with_the_right_to_it(fleet_of, registry, large_artifact):
    """Chunks of a device that was revoked meanwhile are dropped; its next probe is refused."""
    fleet = fleet_of(large_artifact, identity=IdentityTable(registry=registry)).start()
    device = fleet.device("d1")
    update_id, header, payload = device.make(fleet.layout)
    device.begin(update_id, header)
    fleet.settle()
    assert device.words(update_id) == ["open"]
    write_registry(registry, registry_of("d1", "d2", "d3").revoked("d1", NOW))
    for start in range(0, len(payload), 65536):
        device.say(device.topics.chunk("d1", update_id, start), payload[start : start + 65536])
    device.begin(update_id, header)
    fleet.settle()
    assert device.words(update_id) == ["open", "refused"]
    assert device.last(update_id).reason == "unknown_device"
    assert fleet.store.uploads() == []
    assert fleet.books().accepted == 0


def test_a_doubled_identity_is_counted_and_told(fleet):
    """In the figures, for Prometheus, and in the store, for ``lichen devices``."""
    device = fleet.device("d1")
    for incarnation, session in ((b"a" * 8, b"1" * 8), (b"b" * 8, b"2" * 8), (b"a" * 8, b"3" * 8)):
        device.birth(session=session, incarnation=incarnation)
        fleet.settle()
    assert fleet.coordinator.figures().doubled == {"d1": 1}
    (double,) = fleet.store.doubles()
    assert (double.device, double.count) == ("d1", 1)
    assert "another installation" in double.how
