"""Seeds: where a codec's random bits come from, as plain integers.

Needs no array library. The derivations are part of the wire format and frozen by test vectors.
"""

import hashlib

__all__ = ["SEED_BYTES", "codec_seed", "stream_seed", "stream_state"]

SEED_BYTES = 16


def codec_seed(update_id: bytes) -> bytes:
    """The 16-byte codec seed of an update: the start of ``sha256("codec" | update_id)``."""
    return hashlib.sha256(b"codec" + update_id).digest()[:SEED_BYTES]


def stream_seed(seed: bytes, purpose: bytes) -> bytes:
    """``sha256(seed | purpose)``: what one random stream of an update starts from.

    Raises:
        ValueError: ``seed`` is not 16 bytes long.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a codec seed has {SEED_BYTES} bytes, not {len(seed)}")
    return hashlib.sha256(seed + purpose).digest()


def stream_state(seed: bytes, purpose: bytes) -> tuple[int, int]:
    """The PCG64 ``(state, increment)`` of a stream, below 2^128: the halves, little-endian, of
    ``stream_seed``; the increment's lowest bit is set.

    Raises:
        ValueError: ``seed`` is not 16 bytes long.
    """
    digest = stream_seed(seed, purpose)
    return int.from_bytes(digest[:16], "little"), int.from_bytes(digest[16:], "little") | 1
