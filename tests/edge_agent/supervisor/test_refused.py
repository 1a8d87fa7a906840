"""What became of an update decides whether its version is done with: a device whose update was refused trains
on the version again, or a fleet in which that happened to everybody would stand still for ever."""

import pytest

from edge_agent.configuration import OutboxSettings
from edge_agent.jobs import TrainJob


def refuse(world, reason):
    """From now on the coordinator refuses what is new."""
    receipt = world.coordinator.receipt("refused", reason=reason)
    world.coordinator.answer = lambda update_id, header, payload: receipt


def accept(world):
    world.coordinator.answer = world.coordinator.accept


def begun(world):
    """The versions of the updates that came, in order; each update once."""
    headers = {known: header for known, header, _ in world.coordinator.begins}
    return [header.base.number for header in headers.values()]


@pytest.mark.parametrize("reason", ["unknown_device", "codec", "not_finite", "unknown_base"])
def test_a_device_whose_update_was_refused_trains_on_the_version_again(world, reason):
    """Under a new id, after half a minute and more; it says why it waits."""
    refuse(world, reason)
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(20)
    assert begun(world) == [1]
    assert world.agent.idle_reason == f"its update of version 1.1 was refused ({reason}); it tries again"
    accept(world)
    world.advance(60)
    assert (begun(world), world.outbox.counts().done) == ([1, 1], 1)
    world.advance(86400)
    assert begun(world) == [1, 1]


def test_refusals_cost_a_device_less_and_less_and_never_stop_it(world):
    """At most 30 trainings in a day that refuses all, and at least one in any two hours."""
    refuse(world, "codec")
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(86400)
    tries = len(begun(world))
    assert 15 < tries < 30
    accept(world)
    world.advance(7200)
    assert world.outbox.counts().done == 1


def test_the_next_version_is_not_put_off_by_a_refusal(world):
    """A refusal is of one version: the next may be of another codec, or of a coordinator that knows us."""
    refuse(world, "codec")
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(3600)
    tries = len(begun(world))
    world.coordinator.publish_version(2)
    world.advance(5)
    assert begun(world)[tries:] == [2]


@pytest.mark.parametrize("reason", ["already_counted", "stale", "layout", "kind"])
def test_what_no_other_update_would_mend_is_not_tried_again(world, reason):
    """A card restored from its image was counted for the version, a stale version is not the newest, and a
    device whose tensors are others makes no other ones of it."""
    refuse(world, reason)
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(86400)
    assert begun(world) == [1]
    assert world.agent.idle_reason == "trained on version 1.1; waiting for a newer one"


def test_a_refusal_is_remembered_over_a_restart(world):
    """What the version was not counted for is on the disk with the receipt."""
    refuse(world, "unknown_device")
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    world.kill()
    accept(world)
    world.boot()
    world.advance(60)
    assert (begun(world), world.outbox.counts().done) == ([1, 1], 1)


def test_an_update_that_grew_too_old_is_made_anew(make_world):
    """A coordinator that comes back after weeks finds a fleet whose updates expired, and nobody waits."""
    world = make_world(outbox=OutboxSettings(max_age_s=7200.0))
    world.coordinator.answer = lambda update_id, header, payload: None
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(12000)
    assert world.outbox.counts().expired == 1
    accept(world)
    world.advance(86400)
    assert world.outbox.counts().done == 1
    assert [job.base.number for job in world.script.jobs if isinstance(job, TrainJob)] == [1, 1]
