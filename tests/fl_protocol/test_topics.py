"""The topic tree: built and read alike, and nothing else is read."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.blob import BlobRef, address_of
from fl_protocol.errors import TopicError
from fl_protocol.topics import (
    BeginTopic,
    BlobTopic,
    ChunkTopic,
    DeviceTopic,
    FleetTopics,
    NamedTopic,
    ReceiptTopic,
    blob_name,
    valid_name,
)

NAMES = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", fullmatch=True)
IDS = st.binary(min_size=16, max_size=16)
ADDRESSES = st.binary(min_size=32, max_size=32).map(address_of)
SIZES = st.integers(1, 10**15 - 1)
INDEXES = st.integers(0, 10**15 - 1)


@given(st.data())
def test_what_is_built_is_read_back(data):
    """Every topic of the tree, within what hosted brokers allow."""
    fleet, device, update_id = data.draw(NAMES), data.draw(NAMES), data.draw(IDS)
    address, size, index = data.draw(ADDRESSES), data.draw(SIZES), data.draw(INDEXES)
    topics = FleetTopics(fleet)
    offset = index // 4096 * 4096
    name = blob_name(address, size)
    tree = {
        topics.coordinator: NamedTopic("coordinator"),
        topics.task(device): NamedTopic("task", device),
        topics.blob(name, index): BlobTopic(address, size, index),
        topics.begin(device, update_id): BeginTopic(device, update_id),
        topics.chunk(device, update_id, offset): ChunkTopic(device, update_id, offset),
        topics.get(device): DeviceTopic("get", device),
        topics.event(device): DeviceTopic("event", device),
        topics.state(device): DeviceTopic("state", device),
        topics.receipt(device, update_id): ReceiptTopic(device, update_id),
        topics.command(device): DeviceTopic("command", device),
        topics.task_for(device): DeviceTopic("task", device),
        topics.blob_for(device, name, index): BlobTopic(address, size, index, device),
    }
    for topic, parsed in tree.items():
        assert topics.parse(topic) == parsed
        assert topic.count("/") <= 7
        assert len(topic) < 256


@given(st.text(max_size=80) | st.from_regex(r"fl1/barn/[a-z0-9+#./-]{0,60}", fullmatch=True))
def test_garbage_is_refused_in_one_way(text):
    """Arbitrary text, and text that begins like one of ours."""
    with contextlib.suppress(TopicError):
        FleetTopics("barn").parse(text)


@given(NAMES, st.data())
def test_levels_changed_in_a_good_topic_are_refused_or_read(device, data):
    """One level of a good topic replaced by anything."""
    topics = FleetTopics("barn")
    levels = topics.chunk(device, bytes(16), 4096).split("/")
    levels[data.draw(st.integers(0, len(levels) - 1))] = data.draw(st.text(max_size=12))
    with contextlib.suppress(TopicError):
        topics.parse("/".join(levels))


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fl1/barn",
        "fl1/barn/",
        "fl1/other/coordinator",
        "fl1/barn/coordinator/",
        "fl1/barn/coordinator\n",
        "fl1/barn/task/",
        "fl1/barn/state/+",
        "fl1/barn/state/.hidden",
        "fl1/barn/up/pi/get/x",
        "fl1/barn/up/pi/begin/" + 26 * "A",
        "fl1/barn/up/pi/begin/" + 25 * "a",
        "fl1/barn/up/pi/begin/" + 25 * "a" + "b",  # bits beyond the 128
        "fl1/barn/up/pi/chunk/" + 26 * "a" + "/1",
        "fl1/barn/up/pi/chunk/" + 26 * "a" + "/04096",
        "fl1/barn/up/pi/chunk/" + 26 * "a" + "/-4096",
        "fl1/barn/up/pi/chunk/" + 26 * "a" + "/9007199254740992",
        "fl1/barn/blob/" + 26 * "a" + "/0",
        "fl1/barn/blob/" + 26 * "a" + ".65536/00",
        "fl1/barn/blob/" + 26 * "1" + ".65536/0",
    ],
)
def test_what_is_almost_a_topic_is_none(topic):
    """One spelling for each thing, and integers below 2**53."""
    with pytest.raises(TopicError):
        FleetTopics("barn").parse(topic)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a+", "#", "ä", "x" * 65, "a b", "a\n"])
def test_a_name_that_could_be_a_pattern_or_a_path_is_none(name):
    """The name is also a user name and the name of a folder."""
    assert not valid_name(name)
    with pytest.raises(TopicError):
        FleetTopics(name)
    with pytest.raises(TopicError):
        FleetTopics("barn").get(name)


@pytest.mark.parametrize("name", ["", "x", "a/b.65536", 26 * "a", 26 * "a" + ".0", 26 * "a" + ".65536/#"])
def test_a_blob_name_from_the_wire_builds_no_other_topic(name):
    """A device asks by name: the answer goes to a blob topic of its own, or nowhere."""
    with pytest.raises(TopicError):
        FleetTopics("barn").blob_for("pi", name, 0)
    with pytest.raises(TopicError):
        FleetTopics("barn").blob(blob_name(BlobRef.of(b"").address, 65536), -1)
