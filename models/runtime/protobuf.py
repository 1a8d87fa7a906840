"""The protobuf wire format, read only, bounded.

Only what a reader of trusted-by-hash but still hostile-until-proven files needs: fields in order, with
every length checked against the bytes that are there. Groups do not exist.
"""

import struct
from collections.abc import Iterator
from typing import TypeAlias

from fl_protocol.errors import ArtifactError

__all__ = ["FieldValue", "fields", "floats", "integers", "octets", "signed", "text"]

FieldValue: TypeAlias = int | memoryview
"""A varint as an unsigned 64-bit integer; fixed-width and length-delimited values as their bytes."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def fields(message: memoryview) -> Iterator[tuple[int, FieldValue]]:
    """Yield ``(field number, value)`` of each field of a message.

    Raises:
        ArtifactError: the bytes are not a protobuf message.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ArtifactError("not a protobuf message: field number 0")
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ArtifactError(f"not a protobuf message: wire type {wire}")
        if size > end - at:
            raise ArtifactError(f"a protobuf message cut off: {size} bytes announced, {end - at} left")
        yield number, message[at : at + size]
        at += size


def octets(value: FieldValue) -> memoryview:
    """A field that holds bytes or a nested message.

    Raises:
        ArtifactError: the field is a number.
    """
    if isinstance(value, int):
        raise ArtifactError("a protobuf field holds a number where a message or bytes belong")
    return value


def text(value: FieldValue) -> str:
    """A field that holds UTF-8.

    Raises:
        ArtifactError: it does not.
    """
    try:
        return str(octets(value), "utf-8")
    except UnicodeDecodeError:
        raise ArtifactError("a protobuf text field is not UTF-8") from None


def signed(value: FieldValue) -> int:
    """A field that holds an int64.

    Raises:
        ArtifactError: it does not.
    """
    if not isinstance(value, int):
        raise ArtifactError("a protobuf field holds bytes where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def integers(value: FieldValue) -> list[int]:
    """A repeated int64 field, packed or one entry of it."""
    if isinstance(value, int):
        return [signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(signed(number))
    return numbers


def floats(value: FieldValue) -> list[float]:
    """A repeated float field, packed or one entry of it."""
    packed = octets(value)
    if len(packed) % 4:
        raise ArtifactError("a protobuf float field of a length that is no multiple of 4")
    return [number for (number,) in struct.iter_unpack("<f", packed)]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at + index + 1
    raise ArtifactError("a protobuf number that does not end, or has more than 64 bits")
