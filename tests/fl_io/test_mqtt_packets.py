"""MQTT packets as bytes, checked against the specification's own layout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_io import mqtt_packets as packets
from fl_io.mqtt_packets import Acknowledgement, Answer, ConnectOptions, PacketReader, Publication
from fl_protocol.errors import TransportError
from fl_protocol.transport import Will

STREAM = b"".join(
    [
        bytes([0x20, 2, 1, 0]),
        packets.publish("a/b", b"x" * 300, 7),
        packets.publish("a", b"", 65535, retain=True),
        bytes([0x30, 5, 0, 3]) + b"q/0",
        packets.puback(513),
        bytes([0x90, 3, 0, 1, 1]),
        bytes([0xD0, 0]),
    ]
)
PACKETS = [
    Answer(2, b"\x01\x00"),
    Publication("a/b", b"x" * 300, False, 7),
    Publication("a", b"", True, 65535),
    Publication("q/0", b"", False, 0),
    Acknowledgement(513),
    Answer(9, b"\x00\x01\x01"),
    Answer(13, b""),
]


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_packets_are_read_wherever_the_stream_is_cut(cuts):
    """TCP knows no packets: a length, a topic, a payload may come in pieces."""
    reader, read = PacketReader(), []
    ends = [*sorted(cuts), len(STREAM)]
    for start, end in zip([0, *ends], ends, strict=False):
        read += reader.feed(STREAM[start:end])
    assert read == PACKETS


def test_connect_says_what_the_specification_wants():
    """MQTT 3.1.1, section 3.1: protocol name and level, flags, keep alive, then the payload in its order."""
    options = ConnectOptions(
        client_id="d1",
        clean=False,
        keepalive_s=600,
        username="u",
        password="p",
        will=Will("w", b"gone"),
    )
    body = b"\x00\x04MQTT\x04" + bytes([0b11001100]) + b"\x02\x58"
    body += b"\x00\x02d1\x00\x01w\x00\x04gone\x00\x01u\x00\x01p"
    assert packets.connect(options) == bytes([0x10, len(body)]) + body
    plain = packets.connect(ConnectOptions(client_id="d1"))
    assert plain[9] == 0b10
    assert plain.endswith(b"\x00\x02d1")


def test_subscriptions_ask_for_qos_1():
    """Section 3.8: reserved flags 2, and a QoS behind each filter; none behind those to be taken back."""
    assert packets.subscribe(5, ["a/#", "b"]) == b"\x82\x0c\x00\x05\x00\x03a/#\x01\x00\x01b\x01"
    assert packets.unsubscribe(5, ["b"]) == b"\xa2\x05\x00\x05\x00\x01b"


@pytest.mark.parametrize("size", [0, 120, 121, 16_000, 17_000, 3_000_000])
def test_lengths_of_one_to_four_bytes_are_written_and_read(size):
    """A publish of any size comes back whole."""
    (read,) = PacketReader().feed(packets.publish("t", bytes(size), 1))
    assert len(read.payload) == size


@pytest.mark.parametrize(
    "stream",
    [
        b"\x34\x05\x00\x01t\x00\x01",  # QoS 2
        b"\x32\x03\x00\x09t",  # a topic beyond the packet's end
        b"\x32\x01\x00",
        b"\x40\x01\x00",
        b"\x20\x00",
        b"\x82\x02\x00\x01",  # what only clients send
        b"\x00\x00",
        b"\x30\xff\xff\xff\xff\x01",  # a length of five bytes
        b"\x30\xff\xff\x7f",  # more than the reader takes
    ],
)
def test_what_no_broker_sends_ends_the_stream(stream):
    """An error that says so, whatever the bytes; never another one, never a wait for more."""
    with pytest.raises(TransportError):
        list(PacketReader(1 << 16).feed(stream))


@given(st.binary(max_size=64))
def test_noise_is_read_or_refused(noise):
    """No bytes raise anything but TransportError."""
    try:
        list(PacketReader().feed(noise))
    except TransportError:
        return


def test_a_topic_that_is_no_text_has_no_name():
    """It is passed on, to be counted and acknowledged: left alone it would come again for ever."""
    (read,) = PacketReader().feed(b"\x32\x07\x00\x02\xff\xfe\x00\x09x")
    assert read == Publication("", b"x", False, 9)
