"""Bodies as section 4 of docs/protocol.md describes them, and the part of msgpack they use.

Plain Python, standard library only.
"""

import math
import struct


class Refused(Exception):
    """What was read is not what the protocol promises."""


BIG_INTEGER = 2**53
MAX_DEPTH = 16


def unpack(octets):
    """The value of a whole msgpack message."""
    value, end = _value(octets, 0, 0)
    if end != len(octets):
        raise Refused("octets behind the message")
    return value


def _value(octets, at, depth):
    if at >= len(octets) or depth > MAX_DEPTH:
        raise Refused("cut off, or too deep")
    head = octets[at]
    at += 1
    if head <= 0x7F:
        return head, at
    if head >= 0xE0:
        return head - 0x100, at
    if head <= 0x8F:
        return _map(octets, at, head & 0x0F, depth)
    if head <= 0x9F:
        return _array(octets, at, head & 0x0F, depth)
    if head <= 0xBF:
        return _text(*_cut(octets, at, head & 0x1F))
    if head in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[head], at
    if head in (0xCA, 0xCB):
        raw, at = _cut(octets, at, 4 if head == 0xCA else 8)
        return struct.unpack(">f" if head == 0xCA else ">d", raw)[0], at
    if 0xCC <= head <= 0xD3:
        raw, at = _cut(octets, at, 1 << (head & 3))
        return int.from_bytes(raw, "big", signed=head >= 0xD0), at
    lengths = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
    if head not in lengths:
        raise Refused("an extension, or no msgpack")
    raw, at = _cut(octets, at, lengths[head])
    length = int.from_bytes(raw, "big")
    if head in (0xC4, 0xC5, 0xC6):
        return _cut(octets, at, length)
    if head in (0xD9, 0xDA, 0xDB):
        return _text(*_cut(octets, at, length))
    return (_array if head in (0xDC, 0xDD) else _map)(octets, at, length, depth)


def _cut(octets, at, length):
    if at + length > len(octets):
        raise Refused("cut off")
    return octets[at : at + length], at + length


def _text(raw, at):
    try:
        return raw.decode("utf-8"), at
    except UnicodeDecodeError:
        raise Refused("a text that is not UTF-8") from None


def _array(octets, at, count, depth):
    if count > 4096:
        raise Refused("an array of more than 4096")
    entries = []
    for _ in range(count):
        entry, at = _value(octets, at, depth + 1)
        entries.append(entry)
    return entries, at


def _map(octets, at, count, depth):
    if count > 256:
        raise Refused("a map of more than 256")
    entries = {}
    for _ in range(count):
        key, at = _value(octets, at, depth + 1)
        if not isinstance(key, str):
            raise Refused("a key that is no text")
        entries[key], at = _value(octets, at, depth + 1)
    return entries, at


def pack(value):
    """Write a value in its shortest form; floats as float32."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return b"\xca" + struct.pack(">f", value)
    if isinstance(value, int):
        return _pack_integer(value)
    if isinstance(value, bytes):
        return _head(len(value), None, 0, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, str):
        raw = value.encode()
        return _head(len(raw), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + raw
    if isinstance(value, dict):
        inside = b"".join(pack(key) + pack(entry) for key, entry in value.items())
        return _head(len(value), 0x80, 16, (None, 0xDE, 0xDF)) + inside
    return _head(len(value), 0x90, 16, (None, 0xDC, 0xDD)) + b"".join(map(pack, value))


def _pack_integer(value):
    if -32 <= value <= 127:
        return struct.pack(">b", value) if value < 0 else bytes([value])
    low = 0xCC if value > 0 else 0xD0
    for power in range(4):
        bits = 8 << power
        if value < 1 << (bits if value > 0 else bits - 1) and value >= -(1 << (bits - 1)):
            return bytes([low + power]) + value.to_bytes(bits // 8, "big", signed=value < 0)
    raise Refused("an integer that is too large")


def _head(length, short, below, wide):
    if short is not None and length < below:
        return bytes([short | length])
    for head, width in zip(wide, (1, 2, 4), strict=True):
        if head is not None and length < 1 << (8 * width):
            return bytes([head]) + length.to_bytes(width, "big")
    raise Refused("too long")


class Body:
    """A map, and readers for its keys."""

    def __init__(self, value):
        if not isinstance(value, dict):
            raise Refused("a body is a map")
        self.value = value

    @classmethod
    def of(cls, octets, limit):
        """The body of a message of at most ``limit`` octets."""
        if len(octets) > limit:
            raise Refused("too large")
        return cls(unpack(octets))

    def get(self, key, default=None):
        """The value, or its default; nil is like absent."""
        value = self.value.get(key)
        if value is None:
            value = default
        if value is None:
            raise Refused(f"{key} is missing")
        return value

    def has(self, key):
        """Whether the key is there."""
        return self.value.get(key) is not None

    def integer(self, key, low=0, high=BIG_INTEGER - 1, default=None):
        """An integer in a range."""
        value = self.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise Refused(key)
        return value

    def number(self, key, low=-math.inf, high=math.inf, default=None):
        """A finite number in a range."""
        value = self.get(key, default)
        if type(value) not in (int, float) or (type(value) is int and abs(value) >= BIG_INTEGER):
            raise Refused(key)
        if not math.isfinite(value) or not low <= value <= high:
            raise Refused(key)
        return float(value)

    def text(self, key, most, default=None):
        """A text of at most so many characters."""
        value = self.get(key, default)
        if not isinstance(value, str) or len(value) > most:
            raise Refused(key)
        return value

    def octets(self, key, exactly=None, most=1 << 30, default=None):
        """An octet string."""
        value = self.get(key, default)
        if not isinstance(value, bytes) or len(value) > most:
            raise Refused(key)
        if exactly is not None and len(value) != exactly and self.has(key):
            raise Refused(key)
        return value

    def flag(self, key, default=None):
        """A boolean."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise Refused(key)
        return value

    def numbers(self, key, most):
        """Named numbers."""
        body = Body(self.get(key, {}))
        if len(body.value) > most:
            raise Refused(key)
        return {name: body.number(name) for name in body.value}

    def optional(self, key, read):
        """What ``read(key)`` gives, or None."""
        return read(key) if self.has(key) else None
