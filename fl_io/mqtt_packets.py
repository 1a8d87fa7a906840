"""MQTT 3.1.1 packets as bytes: what we send, and a reader for what comes. No socket, no clock, no thread.

OASIS: MQTT Version 3.1.1 (2014). QoS 0 and 1 only: nothing here ever asks for 2, and a broker does not
deliver above the QoS that was asked for.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fl_protocol.errors import TransportError
from fl_protocol.transport import Will

__all__ = [
    "DISCONNECT",
    "MAX_PACKET_IDS",
    "PINGREQ",
    "Acknowledgement",
    "Answer",
    "ConnectOptions",
    "Packet",
    "PacketReader",
    "Publication",
    "connect",
    "puback",
    "publish",
    "subscribe",
    "unsubscribe",
]

PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"
MAX_PACKET_IDS = 0xFFFF
MOST_BYTES = 256 << 20
"""The remaining length of a packet that the protocol allows."""

_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _UNSUBACK, _PINGRESP = 2, 3, 4, 9, 11, 13
_ANSWERS = (_CONNACK, _SUBACK, _UNSUBACK, _PINGRESP)
_LEAST = {_CONNACK: 2, _PUBACK: 2, _SUBACK: 3, _UNSUBACK: 2}
_PACKET_ID = struct.Struct(">H")
_PUBACK_PACKET = struct.Struct(">BBH")


class Publication(NamedTuple):
    """PUBLISH; ``packet_id`` is 0 at QoS 0. ``topic`` is empty where it was no UTF-8."""

    topic: str
    payload: bytes
    retained: bool
    packet_id: int


class Acknowledgement(NamedTuple):
    """PUBACK."""

    packet_id: int


class Answer(NamedTuple):
    """CONNACK, SUBACK, UNSUBACK or PINGRESP, by ``kind`` (2, 9, 11, 13), with what it carries."""

    kind: int
    body: bytes

    @property
    def connects(self) -> bool:
        """Whether this is a CONNACK."""
        return self.kind == _CONNACK

    @property
    def session_present(self) -> bool:
        """Of a CONNACK: whether the broker has kept our session."""
        return bool(self.body[0] & 1)

    @property
    def code(self) -> int:
        """Of a CONNACK: 0 for accepted, 1 to 5 for why not."""
        return self.body[1]


Packet = Publication | Acknowledgement | Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """What CONNECT says; ``keepalive_s`` 0 switches the broker's watch off."""

    client_id: str
    clean: bool = True
    keepalive_s: int = 600
    username: str | None = None
    password: str | None = None
    will: Will | None = None


def connect(options: ConnectOptions) -> bytes:
    """CONNECT; a will goes at QoS 1, not retained."""
    flags = 0x02 if options.clean else 0
    body = [_text(options.client_id)]
    if options.will is not None:
        flags |= 0x04 | 1 << 3
        body += [_text(options.will.topic), _octets(options.will.payload)]
    if options.username is not None:
        flags |= 0x80
        body.append(_text(options.username))
        if options.password is not None:
            flags |= 0x40
            body.append(_text(options.password))
    head = _text("MQTT") + struct.pack(">BBH", 4, flags, options.keepalive_s)
    return _packet(0x10, head + b"".join(body))


def publish(topic: str, payload: bytes, packet_id: int, *, retain: bool = False) -> bytes:
    """PUBLISH at QoS 1."""
    name = topic.encode()
    length = 4 + len(name) + len(payload)
    return b"".join(
        (
            b"\x33" if retain else b"\x32",
            _length(length),
            _PACKET_ID.pack(len(name)),
            name,
            _PACKET_ID.pack(packet_id),
            payload,
        )
    )


def puback(packet_id: int) -> bytes:
    """PUBACK."""
    return _PUBACK_PACKET.pack(0x40, 2, packet_id)


def subscribe(packet_id: int, filters: Sequence[str]) -> bytes:
    """SUBSCRIBE, each filter at QoS 1."""
    body = b"".join(_text(pattern) + b"\x01" for pattern in filters)
    return _packet(0x82, _PACKET_ID.pack(packet_id) + body)


def unsubscribe(packet_id: int, filters: Sequence[str]) -> bytes:
    """UNSUBSCRIBE."""
    return _packet(0xA2, _PACKET_ID.pack(packet_id) + b"".join(map(_text, filters)))


class PacketReader:
    """Cuts a stream of bytes into packets."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[Packet]:
        """The packets that ``received`` completes, in order.

        Raises:
            TransportError: what no broker sends: a malformed packet, QoS 2, one of more than
                ``most_bytes``. The connection is of no use any more.
        """
        stream = self._rest + received if self._rest else received
        at, end = 0, len(stream)
        while end - at >= 2:
            size, start = stream[at + 1], at + 2
            if size & 0x80:
                size, start = self._long(stream, at + 1)
                if not start:
                    break
            if start + size > end:
                break
            yield _read(stream[at], stream, start, start + size)
            at = start + size
        self._rest = stream[at:] if at else stream

    def _long(self, stream: bytes, at: int) -> tuple[int, int]:
        """``(size, where the packet's body starts)``; a start of 0 where the length is not whole yet."""
        size = shift = 0
        while at < len(stream):
            octet = stream[at]
            size |= (octet & 0x7F) << shift
            at += 1
            if not octet & 0x80:
                if size > self._most:
                    raise TransportError(f"the broker sends a packet of {size} bytes")
                return size, at
            shift += 7
            if shift > 21:
                raise TransportError("the broker sends a packet whose length has five bytes")
        return 0, 0


def _read(head: int, stream: bytes, start: int, end: int) -> Packet:
    kind = head >> 4
    if kind == _PUBLISH:
        return _publication(head, stream, start, end)
    if end - start < _LEAST.get(kind, 0):
        raise TransportError(f"the broker sends a packet of kind {kind} that is too short")
    if kind == _PUBACK:
        return Acknowledgement(stream[start] << 8 | stream[start + 1])
    if kind in _ANSWERS:
        return Answer(kind, stream[start:end])
    raise TransportError(f"the broker sends a packet of kind {kind}, which no client takes")


def _publication(head: int, stream: bytes, start: int, end: int) -> Publication:
    qos = head >> 1 & 3
    if qos > 1 or end - start < 2:
        raise TransportError("the broker sends a message at QoS 2, or a broken one")
    name = start + 2
    after = name + (stream[start] << 8 | stream[start + 1])
    payload = after + 2 * qos
    if payload > end:
        raise TransportError("the broker sends a message that is shorter than its topic")
    try:
        topic = stream[name:after].decode()
    except UnicodeDecodeError:
        topic = ""
    packet_id = stream[after] << 8 | stream[after + 1] if qos else 0
    return Publication(topic, stream[payload:end], bool(head & 1), packet_id)


def _packet(head: int, body: bytes) -> bytes:
    return bytes([head]) + _length(len(body)) + body


def _length(size: int) -> bytes:
    octets = bytearray()
    while size > 0x7F:
        octets.append(size & 0x7F | 0x80)
        size >>= 7
    octets.append(size)
    return bytes(octets)


def _text(text: str) -> bytes:
    return _octets(text.encode())


def _octets(octets: bytes) -> bytes:
    return _PACKET_ID.pack(len(octets)) + octets
