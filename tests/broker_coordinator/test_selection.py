"""Who trains now."""

import pytest

from broker_coordinator.selection import LeaseSelection, OpenSelection, RoundSelection, cohort, over
from broker_coordinator.storage.records import Lease
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.presence import DevicePresence
from fl_protocol.version import VersionId


def version(number):
    return VersionId(epoch=1, number=number, digest=bytes([number]) * 16)


def lease(device, deadline=10.0, number=1):
    lease_id = f"{device}{number}".encode().ljust(8)
    return Lease(lease_id=lease_id, device=device, version=version(number), deadline=deadline)


def come_online(store, names, samples=5):
    presence = DevicePresence(online=True, session=b"session1", samples=samples, agent="0.1.0")
    for name in names:
        store.device_seen(name, presence)


@pytest.fixture
def store(tmp_path):
    """Twenty devices on line, d00 to d19."""
    with_devices = SqliteStore.open(tmp_path, durable=False)
    come_online(with_devices, [f"d{number:02d}" for number in range(20)])
    yield with_devices
    with_devices.close()


def test_open_asks_nobody(store):
    """The manifest's share says it all."""
    assert OpenSelection().choose(version(1), store, [], 0) == ()


def test_leases_fill_the_free_slots_and_no_more(store):
    """At most ``in_flight`` are held; a holder gets no second one."""
    selection = LeaseSelection(in_flight=5)
    held = [lease("d00"), lease("d01")]
    for one in held:
        store.grant_lease(one)
    chosen = selection.choose(version(1), store, held, 0)
    assert len(set(chosen)) == 3
    assert not {"d00", "d01"} & set(chosen)
    assert selection.choose(version(1), store, [lease(f"d0{number}") for number in range(5)], 0) == ()


def test_who_cannot_or_need_not_train_is_left_out(tmp_path):
    """Away, without samples, or counted for this very version."""
    store = SqliteStore.open(tmp_path, durable=False)
    come_online(store, ["counted", "ready", "away"])
    come_online(store, ["empty"], samples=0)
    store.device_seen("away", DevicePresence(online=False, session=b"session1"))
    store.count_update("counted", accepted=True, bytes_up=0, base=1)
    for fair in (False, True):
        assert LeaseSelection(in_flight=9, fair=fair).choose(version(1), store, [], 0) == ["ready"]
    assert set(store.ready(version(2), most=9, fair=False)) == {"counted", "ready"}
    assert (store.count_ready(most=9), store.count_ready(most=1)) == (2, 1)
    store.close()


def serve(store, selection, rounds):
    """Who was asked how often, each answering at once."""
    asked = {}
    for number in range(1, rounds + 1):
        for device in selection.choose(version(number), store, [], 0):
            asked[device] = asked.get(device, 0) + 1
            granted = lease(device, number=number)
            store.grant_lease(granted)
            store.end_lease(granted.lease_id)
            store.count_update(device, accepted=True, bytes_up=0, base=number)
    return asked


def test_chance_asks_all_devices_about_as_often(store):
    """A grant draws the device's place anew: none sits behind a wide gap for ever."""
    asked = serve(store, LeaseSelection(in_flight=2), 200)
    assert len(asked) == 20
    assert max(asked.values()) <= 40
    assert min(asked.values()) >= 8


def test_fair_asks_those_with_the_fewest_turns(store):
    """Nobody gets a second turn before all have had one; who comes late catches up first."""
    selection = LeaseSelection(in_flight=5, fair=True)
    assert set(serve(store, selection, 8).values()) == {2}
    come_online(store, ["late"])
    assert selection.choose(version(9), store, [], 0)[0] == "late"


def test_a_lease_that_lapses_counts_as_a_turn(store):
    """Devices that never answer must not hold every slot of ``fair`` for ever."""
    selection = LeaseSelection(in_flight=10, fair=True)
    silent = list(selection.choose(version(1), store, [], 0))
    for device in silent:
        store.grant_lease(lease(device))
        assert store.lapse_lease(lease(device).lease_id)
    assert not store.lapse_lease(b"unknown!")
    assert not set(selection.choose(version(1), store, [], 0)) & set(silent)


def test_a_round_asks_its_cohort_once(store):
    """Who has answered is not replaced; stragglers of an earlier round take no place, and are not asked."""
    selection = RoundSelection(size=4)
    old = [lease("d00", number=1), lease("d01", number=1)]
    for one in old:
        store.grant_lease(one)
    chosen = selection.choose(version(2), store, old, 0)
    assert len(chosen) == 4
    assert not {"d00", "d01"} & set(chosen)
    held = [*old, *(lease(device, number=2) for device in chosen)]
    assert selection.choose(version(2), store, held, 0) == ()
    assert selection.choose(version(2), store, held[:-1], 1) == ()
    assert len(selection.choose(version(2), store, held[:-1], 0)) == 1


def test_a_cohort_is_rounded_up():
    """But not by the error of a product of floats."""
    assert [cohort(10, 1.3), cohort(10, 1.1), cohort(3, 1.3), cohort(5, 1.0)] == [13, 11, 4, 5]


@pytest.mark.parametrize("fair", [True, False])
def test_no_choice_reads_the_whole_fleet(store, fair):
    """The plan walks an index in its order: nothing is sorted, and no table is scanned."""
    seen = []
    store._database._connection.set_trace_callback(seen.append)
    store.ready(version(1), most=3, fair=fair)
    store._database._connection.set_trace_callback(None)
    plans = [
        row[-1]
        for text in seen
        if text.startswith("SELECT device")
        for row in store._database._connection.execute(f"EXPLAIN QUERY PLAN {text}")
    ]
    assert any("devices_fair" in plan or "devices_ready" in plan for plan in plans)
    assert not any("TEMP B-TREE" in plan for plan in plans), plans


def test_a_lease_ends_with_its_time_or_with_the_boot():
    """One whose deadline is further than any can be was granted by another boot's clock."""
    leases = [lease("over", 9.0), lease("held", 11.0), lease("reboot", 900.0)]
    assert set(over(leases, 10.0, 60.0).values()) == {"over", "reboot"}


def test_a_lease_below_the_horizon_is_over():
    """No update of its version would be taken."""
    leases = [lease("at", 11.0)]
    at = leases[0].version.epoch, leases[0].version.number
    assert not over(leases, 10.0, 60.0, at)
    assert over(leases, 10.0, 60.0, (at[0], at[1] + 1))
