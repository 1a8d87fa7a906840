"""What an update left out, as the supervisor keeps it: with the update, or not at all."""

from edge_agent.jobs import TrainJob
from fl_protocol.errors import StorageError


def given(world) -> list[bytes]:
    """What each training was given of earlier updates."""
    return [job.codec_state for job in world.script.jobs if isinstance(job, TrainJob)]


def train(world, number, left):
    """One version, whose update leaves out ``left``."""
    world.script.codec_state = left
    world.coordinator.publish_version(number)
    world.advance(1)


def test_a_training_is_given_what_the_last_update_left_out(world):
    """Over versions, and over a kill."""
    world.boot()
    train(world, 1, b"one")
    train(world, 2, b"two")
    world.kill()
    world.boot()
    train(world, 3, b"three")
    assert given(world) == [b"", b"one", b"two"]


def test_what_an_update_left_out_is_kept_with_it_or_not_at_all(world, monkeypatch):
    """An update that the disk did not take is made again from what there was before it."""
    world.boot()
    train(world, 1, b"one")

    def refuse(*_args, **_keywords):
        raise StorageError("the outbox: disk is full")

    monkeypatch.setattr(type(world.outbox), "put", refuse)
    train(world, 2, b"two")
    monkeypatch.undo()
    world.advance(300)
    assert given(world) == [b"", b"one", b"one"]
    assert world.outbox.codec_state() == b"two"


def test_a_codec_that_keeps_nothing_ends_it(world):
    """After a change of codec the card does not carry the old residual for ever."""
    world.boot()
    train(world, 1, b"one")
    train(world, 2, b"")
    train(world, 3, b"")
    assert given(world) == [b"", b"one", b""]


def test_a_refusal_does_not_touch_it(world):
    """What was sent is lost with its update; what was left out of it is not."""
    world.boot()
    train(world, 1, b"one")
    entry = world.outbox.entries()
    for update in entry:
        world.outbox.settle(update.update_id, "refused", "stale")
    train(world, 2, b"two")
    assert given(world) == [b"", b"one"]
