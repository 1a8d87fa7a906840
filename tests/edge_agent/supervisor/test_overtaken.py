"""A device slower than the fleet's pace: what it is fetching is overtaken before all of it came."""

from dataclasses import replace

import pytest

from fl_protocol.version import VersionId


def begun(world, number: int = 1) -> tuple[str, bytes]:
    """A version whose last chunk does not come; its topic, and what it would be."""
    world.coordinator.publish_version(number, weights=bytes([number]) * 300_000)
    name = next(reversed(world.coordinator.blobs))
    topic = f"fl1/test/blob/{name}"
    world.broker._retained.pop(topic)
    return topic, world.coordinator.blobs[name]


def bases(world) -> list[int]:
    """The versions that updates were made from."""
    return [header.base.number for _, header, _ in world.coordinator.begins]


def test_a_download_that_was_overtaken_is_finished_while_its_version_is_published(world):
    """Beginning anew with each version, a slow link would never bring one. The newest comes after it."""
    topic, chunk = begun(world)
    world.boot()
    world.advance(1)
    for number in (2, 3):
        world.coordinator.publish_version(number, weights=bytes([number]) * 300_000)
        world.advance(1)
        assert world.agent.idle_reason == "fetching version 1.1"
    world.coordinator.say(topic, chunk, retain=True)
    world.advance(5)
    assert bases(world) == [1, 3]


def test_a_version_that_is_no_longer_published_gives_way(world):
    """An empty chunk says so; nothing of it is waited for."""
    topic, _ = begun(world)
    world.boot()
    world.advance(1)
    world.coordinator.publish_version(2)
    world.coordinator.say(topic, b"", retain=True)
    world.advance(1)
    assert bases(world) == [2]


def test_a_version_that_does_not_come_gives_way(world):
    """The broker says nothing of a topic that is empty: patience ends, and the newest is fetched."""
    begun(world)
    world.boot()
    world.advance(1)
    world.coordinator.publish_version(2)
    world.advance(20)
    assert bases(world) == [2]


def test_a_link_that_always_breaks_does_not_hold_on_to_what_is_gone(world):
    """No connection lasts as long as patience does: after some that brought nothing, the newest is."""
    begun(world)
    world.boot()
    world.advance(1)
    world.coordinator.publish_version(2)
    for _ in range(4):
        world.advance(2)
        world.transport.drop("reset")
        world.transport.reconnect()
    world.advance(2)
    assert bases(world) == [2]


def test_gates_that_shut_meanwhile_open_for_the_newest(make_world):
    """By then the one that was begun is an old one."""
    world = make_world()
    topic, chunk = begun(world)
    world.boot()
    world.advance(1)
    world.coordinator.publish_version(2)
    world.coordinator.command("pause", 1)
    world.advance(1)
    world.coordinator.command("resume", 2)
    world.coordinator.say(topic, chunk, retain=True)
    world.advance(5)
    assert bases(world) == [2]


@pytest.mark.parametrize(
    "change",
    [
        {"version": VersionId(epoch=2, number=2, digest=bytes(16))},
        {"codec": "float64"},
        {"fingerprint": bytes(8)},
    ],
    ids=["epoch", "codec", "layout"],
)
def test_what_would_be_refused_is_not_finished(world, change):
    """Another epoch, codec or layout: an update for the version before it would be of no use."""
    begun(world)
    world.boot()
    world.advance(1)
    newest = world.coordinator.publish_version(2, weights=b"2" * 48)
    world.coordinator.counter += 1
    changed = replace(newest, counter=world.coordinator.counter, **change)
    world.coordinator.publish_manifest(changed)
    world.advance(5)
    assert [header.base for _, header, _ in world.coordinator.begins] == [changed.version]


def test_a_restart_goes_on_with_what_was_begun(world):
    """The manifest that was verified last is that one's: its part file is not thrown away."""
    topic, chunk = begun(world)
    world.boot()
    world.advance(1)
    world.coordinator.publish_version(2)
    world.advance(1)
    world.kill()
    world.boot()
    world.advance(1)
    assert world.agent.idle_reason == "fetching version 1.1"
    world.coordinator.say(topic, chunk, retain=True)
    world.advance(5)
    assert bases(world) == [1, 2]
