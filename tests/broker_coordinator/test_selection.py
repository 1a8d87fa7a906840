"""Who trains now."""

from broker_coordinator.records import DeviceRecord, Lease
from broker_coordinator.selection import LeaseSelection, OpenSelection, expired
from fl_protocol.task import Pacing
from fl_protocol.version import VersionId


def version(number):
    return VersionId(epoch=1, number=number, digest=bytes([number]) * 16)


def lease(device, deadline=10.0):
    return Lease(lease_id=device.encode().ljust(8), device=device, version=version(1), deadline=deadline)


FLEET = [DeviceRecord(device=f"d{number:02d}", online=True, samples=5) for number in range(20)]


def test_open_asks_nobody():
    """The manifest's share says it all."""
    assert OpenSelection(pacing=Pacing()).choose(version(1), FLEET, []) == ()


def test_leases_fill_the_free_slots_and_no_more():
    """At most ``in_flight`` are held; a holder gets no second one."""
    selection = LeaseSelection(pacing=Pacing(by_lease=True), in_flight=5)
    chosen = selection.choose(version(1), FLEET, [lease("d00"), lease("d01")])
    assert len(chosen) == 3
    assert not {"d00", "d01"} & set(chosen)
    assert selection.choose(version(1), FLEET, [lease(d.device) for d in FLEET[:5]]) == ()


def test_who_cannot_or_need_not_train_is_left_out():
    """Away, without samples, or counted for this very version."""
    fleet = [
        DeviceRecord(device="away", online=False, samples=5),
        DeviceRecord(device="empty", online=True, samples=0),
        DeviceRecord(device="counted", online=True, samples=5, last_base=1),
        DeviceRecord(device="ready", online=True, samples=5, last_base=0),
    ]
    selection = LeaseSelection(pacing=Pacing(by_lease=True), in_flight=9)
    assert selection.choose(version(1), fleet, []) == ["ready"]


def test_every_device_comes_first_some_time():
    """The order differs from version to version: with one slot, all twenty get a turn."""
    selection = LeaseSelection(pacing=Pacing(by_lease=True), in_flight=1)
    first = {selection.choose(version(number), FLEET, [])[0] for number in range(200)}
    assert len(first) == len(FLEET)


def test_a_lease_ends_with_its_time_or_with_the_boot():
    """One whose deadline is further than any can be was granted by another boot's clock."""
    leases = [lease("over", 9.0), lease("held", 11.0), lease("reboot", 900.0)]
    assert set(expired(leases, 10.0, 60.0).values()) == {"over", "reboot"}
