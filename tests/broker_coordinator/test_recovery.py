"""Who is in office, and a coordinator whose store was restored from a backup."""

import shutil

import pytest

from broker_coordinator.books.backup import back_up
from broker_coordinator.configuration import SelectionTable
from fl_protocol.command import Command
from fl_protocol.errors import TransportError
from fl_protocol.presence import CoordinatorPresence, DeviceEvent
from fl_protocol.signed import peek


def test_a_challenge_is_answered(fleet):
    """A second coordinator that asks hears session and term of the first."""
    probe = fleet.device("probe")
    question = CoordinatorPresence(session=b"q" * 8, epoch=0, term=0, challenge=b"q" * 8)
    probe.say(probe.topics.coordinator, question.pack())
    fleet.settle()
    answer = probe.presences[-1]
    assert (answer.challenge, answer.term) == (b"q" * 8, 1)
    assert answer.session != b"q" * 8


def test_a_coordinator_of_a_later_term_ends_this_one(fleet):
    """Two must not count: the older one goes, and says why."""
    other = fleet.device("other")
    later = CoordinatorPresence(session=b"z" * 8, epoch=1, term=2)
    other.say(other.topics.coordinator, later.pack())
    with pytest.raises(TransportError, match="has taken office"):
        fleet.settle()


def roll_back(fleet, copy):
    """Put an old copy of the state folder in the place of the present one."""
    fleet.crash()
    shutil.rmtree(fleet.folder)
    shutil.copytree(copy, fleet.folder)


@pytest.fixture
def restored(fleet, tmp_path):
    """A fleet at version 2, and a backup of it at version 1."""
    devices = [fleet.device(f"d{number}") for number in range(2)]
    fleet.contribute(*devices)
    back_up(fleet.folder, tmp_path / "backup")
    fleet.contribute(*devices)
    assert devices[0].manifest.version.number == 2
    return fleet, devices, tmp_path / "backup"


def test_a_restored_coordinator_is_stopped_by_the_manifest_on_the_broker(restored):
    """It finds its own signature on a newer manifest: it publishes nothing, and refuses nothing."""
    fleet, devices, backup = restored
    manifest = devices[0].manifest
    roll_back(fleet, backup)
    fleet.start()
    assert fleet.coordinator.figures().state == "rolled_back"
    late = fleet.device("late")
    assert late.manifest == manifest
    update = late.make(fleet.layout)
    late.begin(*update)
    fleet.settle()
    assert (late.last(update[0]).state, late.last(update[0]).reason) == ("later", "rolled_back")
    assert devices[0].presences[-1].rolled_back


def test_a_restored_coordinator_is_stopped_by_a_device(restored):
    """Broker empty, backup old: a device has seen a newer manifest, is asked for it, and proves it."""
    fleet, devices, backup = restored
    order = devices[0].manifest.order
    proof = fleet.broker._retained[devices[0].topics.task()]
    roll_back(fleet, backup)
    fleet.broker.restart(keep_store=False)
    fleet.start()
    fleet.settle(3.0)
    assert fleet.coordinator.figures().state == "running"
    witness = fleet.device("witness")
    witness.birth(seen=order)
    fleet.settle()
    command = Command.unpack(peek(witness.commands[-1], limit=4096))
    assert (command.kind, command.evidence) == ("restate", True)
    witness.say(witness.topics.event("witness"), DeviceEvent(kind="evidence", proof=b"forged").pack())
    fleet.settle()
    assert fleet.coordinator.figures().state == "running"
    witness.say(witness.topics.event("witness"), DeviceEvent(kind="evidence", proof=proof).pack())
    fleet.settle()
    assert fleet.coordinator.figures().state == "rolled_back"


def test_recovery_opens_an_epoch_that_devices_follow(restored):
    """Version 2 of epoch 1 is given up; version 2 of epoch 2 goes out, and is built upon."""
    fleet, devices, backup = restored
    lost = devices[0].manifest.version
    roll_back(fleet, backup)
    fleet.start()
    fleet.store.open_epoch()
    fleet.crash()
    fleet.start()
    newest = devices[0].manifest
    assert (newest.version.epoch, newest.version.number) == (2, 2)
    assert newest.order > (1, 10**6)
    update = devices[0].make(fleet.layout, base=lost)
    devices[0].begin(*update)
    fleet.settle()
    assert devices[0].last(update[0]).reason == "unknown_base"
    fleet.contribute(*devices)
    assert (fleet.coordinator.version.epoch, fleet.coordinator.version.number) == (2, 3)
    assert fleet.books().replay_ok


def test_it_says_that_it_is_rolled_back_when_there_is_room(restored):
    """The connection's window is full when the proof comes: its presence waits, and is said."""
    fleet, devices, backup = restored
    proof = fleet.broker._retained[devices[0].topics.task()]
    roll_back(fleet, backup)
    fleet.broker.restart(keep_store=False)
    fleet.start()
    fleet.settle(3.0)
    witness = fleet.device("witness")
    fleet.transport._window = 0
    witness.say(witness.topics.event("witness"), DeviceEvent(kind="evidence", proof=proof).pack())
    fleet.settle()
    assert not witness.presences[-1].rolled_back
    fleet.transport._window = 64
    fleet.settle()
    assert witness.presences[-1].rolled_back


def test_a_second_recovery_goes_above_the_first(restored):
    """Restored once more from the same backup, after epoch 2 had been opened: its manifest is proven, and
    the next epoch is 3."""
    fleet, devices, backup = restored
    roll_back(fleet, backup)
    fleet.start()
    assert fleet.store.open_epoch().epoch == 2
    fleet.crash()
    fleet.start()
    fleet.contribute(*devices)
    second = devices[0].manifest
    assert second.version.epoch == 2
    roll_back(fleet, backup)
    fleet.start()
    assert fleet.coordinator.figures().state == "rolled_back"
    assert fleet.store.open_epoch().epoch == 3
    fleet.crash()
    fleet.start()
    assert devices[0].manifest.order > second.order


def test_devices_obey_a_restored_coordinator(fleet_of, tmp_path):
    """The lost history had many terms, and devices obeyed commands of the last: a restored coordinator's
    are above them at once, and those of the epoch that it opens above these."""
    fleet = fleet_of(selection=SelectionTable(kind="train", in_flight=1)).start()
    device = fleet.device("d1")
    back_up(fleet.folder, tmp_path / "backup")
    for _ in range(3):
        fleet.crash()
        fleet.start()
    device.birth()
    fleet.settle()
    obeyed = max(command.order for command in commands(device))
    for recovered in (False, True):
        roll_back(fleet, tmp_path / "backup")
        fleet.start()
        if recovered:
            fleet.store.open_epoch()
            fleet.crash()
            fleet.start()
        device.birth()
        fleet.settle()
        newest = commands(device)[-1].order
        assert newest > obeyed
        obeyed = newest


def commands(device):
    """The commands that a device has got."""
    return [Command.unpack(peek(envelope, limit=4096)) for envelope in device.commands]
