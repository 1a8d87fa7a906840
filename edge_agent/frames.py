"""Frames between supervisor and worker: four bytes of length, little-endian, and a msgpack map."""

import struct
from collections.abc import Callable
from typing import TypeAlias

import msgpack

from edge_agent.jobs import Job, Result, from_body, to_body
from fl_protocol.errors import MessageError
from fl_protocol.update import MAX_UPDATE_BYTES

__all__ = ["MAX_FRAME_BYTES", "ReadBytes", "pack_frame", "read_frame"]

MAX_FRAME_BYTES = MAX_UPDATE_BYTES + (1 << 20)
_LENGTH = struct.Struct("<I")

ReadBytes: TypeAlias = Callable[[int], bytes]
"""Reads exactly so many bytes, or fewer where the stream ended."""


def pack_frame(value: Job | Result) -> bytes:
    """A job or result as it travels."""
    body: bytes = msgpack.packb(to_body(value), use_bin_type=True)
    return _LENGTH.pack(len(body)) + body


def read_frame(read: ReadBytes) -> Job | Result | None:
    """The next job or result; ``None`` where the stream ended between two frames.

    Raises:
        MessageError: the stream ended inside a frame, or the frame is too large or not ours.
    """
    head = read(_LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise MessageError("the stream ended inside a frame")
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise MessageError(f"a frame of {length} bytes")
    content = read(length)
    if len(content) < length:
        raise MessageError("the stream ended inside a frame")
    try:
        body = msgpack.unpackb(content, raw=False, max_bin_len=MAX_FRAME_BYTES)
    except (ValueError, msgpack.UnpackException) as error:
        raise MessageError(f"not a frame: {error}") from None
    return from_body(body)
