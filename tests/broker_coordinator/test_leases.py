"""Leases: who is asked to train, and how the slot comes back. And who is on line."""

import pytest

from broker_coordinator.configuration import SelectionTable, UpdateTable
from fl_protocol.command import Command
from fl_protocol.presence import DevicePresence
from fl_protocol.signed import peek


@pytest.fixture
def leased(fleet_of):
    return fleet_of(
        selection=SelectionTable(kind="train", in_flight=1, lease_s=100.0), update=UpdateTable(codec="int8")
    ).start()


def orders(device):
    """The train commands a device has got."""
    commands = [Command.unpack(peek(envelope, limit=4096)) for envelope in device.commands]
    return [command for command in commands if command.kind == "train"]


def test_leases_ask_one_device_at_a_time(leased):
    """One slot: an update ends the lease, and the other device gets its turn."""
    devices = [leased.device(f"d{number}") for number in range(2)]
    for device in devices:
        device.birth()
    leased.settle()
    first, second = sorted(devices, key=lambda device: -len(orders(device)))
    assert (len(orders(first)), len(orders(second))) == (1, 0)
    order = orders(first)[0]
    assert order.version == leased.coordinator.version.id
    leased.contribute(first, lease=order.lease)
    assert len(orders(second)) == 1
    assert orders(second)[0].order > order.order


def test_a_lease_that_expires_frees_its_slot_and_its_update_counts_all_the_same(leased):
    """Late is not lost."""
    devices = [leased.device(f"d{number}") for number in range(2)]
    for device in devices:
        device.birth()
    leased.settle()
    first, second = sorted(devices, key=lambda device: -len(orders(device)))
    leased.settle(101.0)
    assert len(orders(first)) + len(orders(second)) == 2
    (late,) = leased.contribute(first, lease=orders(first)[0].lease)
    assert first.last(late).state == "done"


def test_a_device_that_comes_back_hears_its_lease_again(leased):
    """The command may have been lost with its connection."""
    device = leased.device("d1")
    device.birth()
    leased.settle()
    leased.settle(40.0)
    device.birth(session=b"session2")
    leased.settle()
    first, second = orders(device)
    assert first.lease == second.lease
    assert second.order > first.order
    assert second.deadline_s == pytest.approx(60.0, abs=1.0)


def test_a_will_of_an_older_session_does_not_take_a_device_off_line(fleet):
    """Sessions are compared for equality, never ordered."""
    device = fleet.device("d1")
    device.birth(session=b"session2")
    farewell = DevicePresence(online=False, session=b"session1")
    device.say(device.topics.state("d1"), farewell.pack())
    fleet.settle()
    assert fleet.coordinator.figures().devices_online == 1
    device.say(device.topics.state("d1"), DevicePresence(online=False, session=b"session2").pack())
    fleet.settle()
    assert fleet.coordinator.figures().devices_online == 0


def test_a_rolled_back_coordinator_repeats_no_lease(leased):
    """It publishes nothing: a device that comes back hears no command of an old store."""
    device = leased.device("d1")
    device.birth()
    leased.settle()
    assert len(orders(device)) == 1
    leased.crash()
    leased.start()
    leased.store.roll_back(1)
    leased.crash()
    leased.start()
    device.birth(session=b"session2")
    leased.settle()
    assert len(orders(device)) == 1
