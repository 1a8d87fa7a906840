"""float32 scalars as the journal keeps them: four little-endian bytes, the very bits that were used."""

import numpy as np

__all__ = ["from_raw", "to_raw"]


def to_raw(value: np.float32) -> bytes:
    """Four little-endian bytes."""
    return np.asarray(value, "<f4").tobytes()


def from_raw(raw: bytes) -> np.float32:
    """The scalar of four little-endian bytes."""
    return np.float32(np.frombuffer(raw, "<f4")[0])
