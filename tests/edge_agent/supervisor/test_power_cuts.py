"""A device on a disk that forgets: power cuts between any two file operations of its life."""

import contextlib
import hashlib

import pytest
from simulated_disk import PowerCut, SimulatedDisk

import edge_agent.sqlite_file
from edge_agent.model_notice import read_notice
from edge_agent.sealed import unseal
from edge_agent.tensor_record import pack_record

BIG = bytes(range(256)) * 300
"""Weights in two chunks: they come into a part file."""
VERSIONS = 2


def live(world):
    """Boot, and take part in the versions up to the second, each with a personal state of its own."""
    world.boot()
    world.advance(60.0)
    while world.coordinator.counter < VERSIONS:
        number = world.coordinator.counter + 1
        world.script.device_state = pack_record({}, {"p": [float(number)]})
        world.coordinator.publish_version(number, weights=BIG[number:])
        world.advance(60.0)


def begin_again(world, disk):
    """What a power cut leaves, and a life without one after it."""
    with contextlib.suppress(AttributeError):
        world.transport.drop("power cut")
        world.transport.stop()
    with contextlib.suppress(AttributeError):
        world.outbox._db.close()
    with contextlib.suppress(AttributeError):
        world.state.close()
    world.agent = None
    disk.crash()
    for path in world.folder.glob("personal/[!.]*"):
        unseal(path.read_bytes(), str(path))
    live(world)
    world.advance(600.0)


def whole(folder):
    """The names of the blobs that are what their names say."""
    return {
        path.name
        for path in (folder / "blobs").iterdir()
        if path.name == hashlib.sha256(path.read_bytes()).hexdigest()
    }


def operations(make_world):
    """How many file operations a life takes."""
    disk = SimulatedDisk()
    world = make_world(disk=disk)
    live(world)
    return disk.operations


def test_a_power_cut_between_any_two_file_operations_costs_no_update(make_world):
    """Identity, downloads, artifact, notice, personal copy: the next life goes on with what is there. Each
    version gives one update, all are settled, and apps are shown the newest version with its files."""
    total = operations(make_world)
    assert total > 30
    for cut in range(1, total + 1):
        disk = SimulatedDisk(seed=cut, cut=cut)
        world = make_world(disk=disk)
        with contextlib.suppress(PowerCut):
            live(world)
        begin_again(world, disk)
        counts = world.outbox.counts()
        assert (counts.created, counts.done, counts.waiting) == (VERSIONS, VERSIONS, 0), cut
        assert len({header.base for _, header, _ in world.coordinator.begins}) == VERSIONS
        notice = read_notice(world.folder)
        assert notice is not None
        assert notice.version.number == VERSIONS, cut
        assert notice.weights in whole(world.folder), cut
        assert (world.folder / "artifacts" / notice.artifact / "manifest.json").exists(), cut
        assert notice.personal == notice.artifact, cut
        personal = (world.folder / "personal" / notice.personal).read_bytes()
        assert personal == world.script.device_state, cut
        world.shut_down()


class Died(BaseException):
    """kill -9, in process: nothing catches it."""


@pytest.fixture
def deadly(monkeypatch):
    """Let commits die at a crash point."""

    def arm(point):
        def die(name):
            if name == point:
                raise Died

        monkeypatch.setattr(edge_agent.sqlite_file, "crash_point", die)

    return arm


@pytest.mark.parametrize(("point", "made"), [("agent.update.commit", 0), ("agent.update.committed", 1)])
def test_an_update_its_base_and_its_state_are_there_together_or_not_at_all(world, deadly, point, made):
    """Whoever dies at the commit has made the update for this base, or has not, in every respect."""
    world.script.device_state = pack_record({}, {"p": [1.0]})
    world.boot()
    deadly(point)
    manifest = world.coordinator.publish_version(1)
    with pytest.raises(Died):
        world.advance(60.0)
    world.kill()
    deadly("")
    outbox = world.state.open_outbox(max_bytes=1 << 20, max_age_s=1e6, clock=world.clock)
    try:
        state = outbox.device_state(manifest.artifact.sha256) if made else outbox.device_state(b"")
        assert len(outbox.entries()) == outbox.counts().created == made
        assert outbox.made_update_for(manifest.version) == bool(made)
        assert (state is not None) == bool(made)
        assert [row.outcome for row in outbox.ledger()] == ["created"] * made
    finally:
        outbox.close()
