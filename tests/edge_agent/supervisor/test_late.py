"""What would come too late is abandoned: a round has closed, and nobody would take its update."""

import random

from edge_agent.jobs import TrainJob, VerifyJob
from edge_agent.upload import Uploads
from fl_io.ed25519 import new_private_key, signer
from fl_protocol.task import Pacing
from fl_protocol.topics import FleetTopics

ROUNDS = Pacing(by_lease=True, horizon=0)


def bases(world) -> list[int]:
    """The versions that trainings began at."""
    return [job.base.number for job in world.script.jobs if isinstance(job, TrainJob)]


def in_training(world, pacing=ROUNDS) -> None:
    """A device that trains on version 1, by a lease that holds for long."""
    world.script.hold = True
    task = world.coordinator.publish_version(1, pacing=pacing)
    world.boot()
    world.coordinator.command("train", 1, lease=b"lease-01", version=task.version, deadline_s=6000.0)
    world.advance(1)
    assert bases(world) == [1]


def test_a_training_whose_round_is_over_is_abandoned_and_its_lease_with_it(world):
    """Nothing of it is sent; the next version is trained on when the device is asked again, not before."""
    in_training(world)
    task = world.coordinator.publish_version(2, pacing=ROUNDS)
    world.advance(5)
    assert (world.script.cancelled, world.agent.status()["trainings_abandoned"]) == (1, 1)
    assert world.agent.idle_reason == "waiting for the coordinator's lease"
    world.script.hold = False
    world.coordinator.command("train", 2, lease=b"lease-02", version=task.version, deadline_s=60.0)
    world.advance(1)
    assert [(header.base.number, header.lease) for _, header, _ in world.coordinator.begins] == [
        (2, b"lease-02")
    ]
    assert world.outbox.counts().created == 1


def test_a_training_within_the_horizon_goes_on(world):
    """An update of a version before is taken there, with its staleness."""
    pacing = Pacing(by_lease=True, horizon=1)
    in_training(world, pacing)
    world.coordinator.publish_version(2, pacing=pacing)
    world.advance(5)
    assert world.script.cancelled == 0
    world.coordinator.publish_version(3, pacing=pacing)
    world.advance(5)
    assert world.script.cancelled == 1


def test_a_manifest_of_another_key_ends_no_training(world):
    """Whoever can publish could keep a fleet from learning; and it is checked once, not at each turn."""
    in_training(world)
    world.coordinator.sign = signer(new_private_key())
    world.coordinator.publish_version(2, pacing=ROUNDS)
    checks = len(world.script.jobs)
    world.advance(30)
    assert (world.script.cancelled, len(world.script.jobs) - checks) == (0, 1)
    world.worker.release()
    world.advance(1)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [1]


def test_an_update_that_is_late_before_it_is_sent_expires(world):
    """It costs no byte, and the ledger says why; one that may have been sent waits for its receipt."""
    in_training(world)
    world.transport.drop("bad link")
    world.pump()
    world.worker.release()
    world.pump()
    (entry,) = world.outbox.entries()
    uploads = Uploads(
        FleetTopics("test"),
        "dev-1",
        world.transport,
        world.clock,
        world.outbox,
        is_late=lambda base: base.number < 2,
        chance=random.Random(1),
    )
    world.transport.reconnect()
    uploads.connected()
    uploads.work()
    assert len(uploads) == 1, "of an earlier life: some of it may have been sent"
    uploads.add(entry)
    uploads.work()
    assert (len(uploads), world.outbox.counts().expired) == (0, 1)
    assert [(row.outcome, row.reason) for row in world.outbox.ledger()][-1] == ("expired", "late")


def test_versions_that_come_faster_than_a_check_end_a_training_too(world):
    """The check of one that was overtaken meanwhile tells that the training is late; the newest waits for its
    own. A forged one that comes in between changes nothing."""
    in_training(world)
    world.script.hold = (TrainJob, VerifyJob)
    for number in (2, 3, 4):
        world.coordinator.publish_version(number, pacing=ROUNDS)
        world.advance(1)
        if number == 3:
            world.workers[1].release()
            world.pump()
    assert (world.script.cancelled, world.agent.status()["trainings_abandoned"]) == (1, 1)
    world.script.hold = False
    for worker in world.workers:
        if worker.busy:
            worker.release()
    world.advance(1)
    assert world.agent.status()["version"] == 4
    assert world.agent.idle_reason == "waiting for the coordinator's lease"


def test_an_older_manifest_behind_one_that_holds_is_not_obeyed(world):
    """Anybody may have recorded it, and send it again while the newest is being checked."""
    world.script.hold = VerifyJob
    world.coordinator.publish_version(1)
    recorded = world.coordinator.manifest
    world.coordinator.publish_version(2)
    world.boot()
    world.pump()
    world.coordinator.say(world.coordinator.topics.task_for("dev-1"), recorded)
    world.advance(1)
    world.script.hold = False
    world.worker.release()
    world.advance(5)
    assert bases(world) == [2]
    assert world.agent.status()["version"] == 2


def test_a_check_that_is_overtaken_and_fails_ends_nothing(world):
    """A manifest of another key, and behind it an honest one that makes nothing late."""
    pacing = Pacing(by_lease=True, horizon=1)
    in_training(world, pacing)
    honest, world.coordinator.sign = world.coordinator.sign, signer(new_private_key())
    world.script.hold = (TrainJob, VerifyJob)
    world.coordinator.publish_version(9, pacing=ROUNDS)
    world.advance(1)
    world.coordinator.sign = honest
    world.coordinator.publish_version(2, pacing=pacing)
    world.advance(1)
    world.workers[1].release()
    world.advance(5)
    assert world.script.cancelled == 0
