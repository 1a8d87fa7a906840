"""float32 scalars as the journal keeps them: four little-endian bytes, the very bits that were used."""

import struct

import numpy as np

__all__ = ["from_raw", "to_raw"]

# An array of one element costs five times as much, and there are three scalars to every update.
_RAW = struct.Struct("<f")


def to_raw(value: np.float32) -> bytes:
    """Four little-endian bytes."""
    return _RAW.pack(value)


def from_raw(raw: bytes) -> np.float32:
    """The scalar of four little-endian bytes."""
    return np.float32(_RAW.unpack(raw)[0])
