"""Signed commands: leases, pause, restate; and that none is obeyed twice or out of order."""

from edge_agent.jobs import TrainJob
from fl_io.ed25519 import new_private_key, signer
from fl_protocol.errors import StorageError
from fl_protocol.signed import TASK_CONTEXT, open_envelope
from fl_protocol.task import MAX_TASK_BYTES, Pacing, TaskManifest

LEASE = b"lease-01"


def trainings(world):
    return [job for job in world.script.jobs if isinstance(job, TrainJob)]


def lease_world(world):
    """A fleet that trains by lease only."""
    task = world.coordinator.publish_version(1, pacing=Pacing(by_lease=True))
    world.boot()
    world.advance(5)
    assert world.agent.idle_reason == "waiting for the coordinator's lease"
    return task


def test_a_lease_makes_one_training_and_is_named_in_the_update(world):
    """by_lease: wait for the command, train, answer it."""
    task = lease_world(world)
    assert not trainings(world)
    world.coordinator.command("train", 1, lease=LEASE, version=task.version, deadline_s=60.0)
    world.advance(1)
    [(_, header, _)] = world.coordinator.begins
    assert header.lease == LEASE


def test_a_lease_that_ran_out_is_not_used(world):
    """The deadline counts from the command's arrival; a later version gets no training out of it."""
    task = lease_world(world)
    world.coordinator.command("train", 1, lease=LEASE, version=task.version, deadline_s=60.0)
    world.advance(1)
    world.advance(100)
    world.coordinator.publish_version(2, pacing=Pacing(by_lease=True))
    world.advance(5)
    assert len(trainings(world)) == 1


def test_a_lease_may_be_answered_from_a_newer_version(world):
    """The version moved on between lease and start: training on the newest is the better answer."""
    world.script.hold = True
    task = lease_world(world)
    world.transport.drop("bad link")
    world.transport.reconnect()
    world.pump()
    world.coordinator.publish_version(2, pacing=Pacing(by_lease=True))
    world.coordinator.command("train", 1, lease=LEASE, version=task.version, deadline_s=60.0)
    world.advance(1)
    world.worker.release()
    world.advance(1)
    [(_, header, _)] = world.coordinator.begins
    assert (header.base.number, header.lease) == (2, LEASE)


def test_a_command_of_another_key_is_not_obeyed(world):
    """Nor does it keep an honest one out."""
    task = lease_world(world)
    honest = world.coordinator.sign
    world.coordinator.sign = signer(new_private_key())
    world.coordinator.command("train", 99, lease=LEASE, version=task.version, deadline_s=60.0)
    world.advance(1)
    assert not trainings(world)
    world.coordinator.sign = honest
    world.coordinator.command("train", 1, lease=LEASE, version=task.version, deadline_s=60.0)
    world.advance(1)
    assert len(trainings(world)) == 1


def test_no_command_is_obeyed_twice_not_even_after_a_restart(world):
    """(term, sequence) only grows; a replayed pause does nothing."""
    world.boot()
    pause = world.coordinator.command("pause", 1)
    world.advance(1)
    world.coordinator.command("resume", 2)
    world.advance(1)
    world.kill()
    world.boot()
    world.coordinator.say(world.coordinator.topics.command("dev-1"), pause)
    world.advance(1)
    world.coordinator.publish_version(1)
    world.advance(1)
    assert len(world.coordinator.begins) == 1


def test_a_pause_lasts_over_a_restart_and_ends_a_training(world):
    """Paused means paused, also for what is under way."""
    world.script.hold = True
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    world.coordinator.command("pause", 1)
    world.advance(1)
    assert world.script.cancelled == 1
    assert len(world.workers) == 2
    assert world.outbox.entries() == ()
    assert not world.worker.busy
    world.shut_down()
    world.script.hold = False
    world.boot()
    world.coordinator.publish_version(2)
    world.advance(1)
    assert world.agent.idle_reason == "paused by the coordinator"
    world.coordinator.command("resume", 2)
    world.advance(1)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [2]
    assert [event.message for event in world.coordinator.events] == ["pause", "resume"]


def test_restate_brings_birth_and_evidence(world):
    """The newest verified manifest, as it was signed: by it a restored coordinator knows what it lost."""
    task = world.coordinator.publish_version(7)
    world.boot()
    world.advance(1)
    births = len(world.coordinator.births)
    world.coordinator.command("restate", 1, evidence=True)
    world.advance(1)
    assert len(world.coordinator.births) == births + 1
    assert world.coordinator.births[-1].seen == task.order
    [event] = world.coordinator.events
    body = open_envelope(TASK_CONTEXT, event.proof, lambda *_: True, limit=2 * MAX_TASK_BYTES)
    assert TaskManifest.unpack(body).version == task.version


def test_restate_is_obeyed_whatever_its_number(world):
    """A coordinator restored from a backup has gone back in its numbers, and depends on it; replaying an old
    one brings a birth a minute at most; and it opens the door to no other command."""
    task = world.coordinator.publish_version(7)
    world.boot()
    world.advance(1)
    world.coordinator.command("resume", 50, term=9)
    world.advance(1)
    old = world.coordinator.command("restate", 3, term=2, evidence=True)
    world.advance(1)
    proofs = [event.proof for event in world.coordinator.events if event.kind == "evidence"]
    body = open_envelope(TASK_CONTEXT, proofs[0], lambda *_: True, limit=2 * MAX_TASK_BYTES)
    assert TaskManifest.unpack(body).version == task.version
    assert world.coordinator.births[-1].seen == task.order
    births = len(world.coordinator.births)
    for _ in range(120):
        world.coordinator.say(world.coordinator.topics.command("dev-1"), old)
        world.advance(1)
    assert 1 <= len(world.coordinator.births) - births <= 2
    world.coordinator.command("pause", 51, term=8)
    world.coordinator.publish_version(8)
    world.advance(1)
    assert len(trainings(world)) == 2


def test_a_restate_of_another_key_is_not_obeyed(world):
    """Whatever its number does not mean whoever its writer."""
    world.boot()
    world.advance(1)
    births = len(world.coordinator.births)
    world.coordinator.sign = signer(new_private_key())
    world.coordinator.command("restate", 1)
    world.advance(10)
    assert len(world.coordinator.births) == births


def test_a_command_that_could_not_be_kept_is_obeyed_when_it_can_be(world, monkeypatch):
    """Not before: a pause that a restart forgets would be none."""
    world.boot()
    world.advance(1)

    def refuse(*_):
        raise StorageError("no space left on device")

    monkeypatch.setattr(type(world.outbox), "remember_all", refuse)
    world.coordinator.command("pause", 1)
    world.advance(30)
    assert not world.agent._orders.paused
    monkeypatch.undo()
    world.advance(60)
    assert world.agent._orders.paused
