"""The residual: what an update left out of a delta, kept by the device for its next one (error feedback).

Codecs that ask for ``feedback`` send only a part of each delta. What is left is added to the next delta, so
that it is late and not lost (Karimireddy et al.: Error Feedback Fixes SignSGD, 2019). It is kept at four bits
an element, rounded at random so that nothing is lost on average, zeros as zeros; then deflated: a memory card
is worn by what is written to it. It is no part of the wire format.
"""

import hashlib
import logging
import zlib

import numpy as np
from numpy.typing import NDArray

from edge_agent.tensor_record import pack_record, unpack_record
from fl_protocol.codec import UpdateCodec, codec_seed, decode
from fl_protocol.errors import LayoutError, StorageError
from fl_protocol.layout import TensorLayout

__all__ = ["ROW", "added", "pack_residual", "remainder", "unpack_residual"]

ROW = 256
"""Elements that share a scale."""
_HIGHEST = 7
_PIECE = 256 * ROW
_WHAT = "what earlier updates left out"
_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]


def added(delta: Floats, state: bytes, codec: UpdateCodec, layout: TensorLayout) -> Floats:
    """``delta`` (float32[layout.size]) and what earlier updates left out, as ``state`` holds it.

    A residual that is damaged, or was left by another codec or layout, is dropped. It is never longer than
    ``1 / keep`` deltas, which is what waiting makes of it: beyond that it is of a training that went wrong.
    """
    if not codec.feedback or not state:
        return delta
    try:
        left = unpack_residual(state, codec, layout)
    except (StorageError, LayoutError) as error:
        _log.warning("%s, is not added: %s", _WHAT, error.args[0])
        return delta
    weights = delta[: layout.weight_size]
    length, bound = _norm(left), _norm(weights) / codec.spec.options.get("keep", 1.0)
    factor = np.float32(min(1.0, bound / length) if length else 0.0)
    summed = delta.copy()
    summed[: layout.weight_size] += left * factor
    return summed


def remainder(
    delta: Floats, payload: bytes, codec: UpdateCodec, layout: TensorLayout, *, update_id: bytes
) -> bytes:
    """The state to keep: what the ``payload`` of an update leaves out of ``delta``; empty where the
    codec asks for no feedback."""
    if not codec.feedback:
        return b""
    left = (delta - decode(codec, payload, layout, codec_seed(update_id)))[: layout.weight_size]
    return pack_residual(left, codec, layout, update_id=update_id)


def pack_residual(left: Floats, codec: UpdateCodec, layout: TensorLayout, *, update_id: bytes) -> bytes:
    """``left`` (float32[layout.weight_size]) as it is kept; ``update_id`` seeds the rounding."""
    seed = hashlib.sha256(b"residual" + update_id).digest()
    chance = np.random.default_rng(int.from_bytes(seed, "little"))
    deflate = zlib.compressobj(1)
    scales, codes = [], []
    for start in range(0, len(left), _PIECE):
        rows = _rows(left[start : start + _PIECE])
        scale = np.abs(rows).max(axis=1) / np.float32(_HIGHEST)
        rows /= np.where(scale > 0, scale, np.float32(1))[:, np.newaxis]
        rows += chance.random(rows.shape, np.float32)
        levels = np.clip(np.floor(rows), -_HIGHEST, _HIGHEST).astype(np.int8).ravel()
        nibbles = (levels + np.int8(_HIGHEST)).view(np.uint8)
        scales.append(scale)
        pairs = np.bitwise_or(nibbles[::2], np.left_shift(nibbles[1::2], 4), dtype=np.uint8)
        codes.append(deflate.compress(pairs.data))
    codes.append(deflate.flush())
    return pack_record(
        {"codec": str(codec.spec), "layout": layout.fingerprint},
        {"scales": np.concatenate(scales), "codes": np.frombuffer(b"".join(codes), np.uint8)},
    )


def unpack_residual(state: bytes, codec: UpdateCodec, layout: TensorLayout) -> Floats:
    """What was kept: float32[layout.weight_size].

    Raises:
        StorageError: it is damaged.
        LayoutError: another codec or another layout left it.
    """
    note, tensors = unpack_record(state, _WHAT)
    if note.get("codec") != str(codec.spec) or note.get("layout") != layout.fingerprint:
        raise LayoutError(
            f"{_WHAT} is of {note.get('codec')}, the task is of {codec.spec} or has another layout"
        )
    rows = -(-layout.weight_size // ROW)
    try:
        scales = tensors["scales"].astype(np.float32, copy=False).reshape(rows, 1)
        octets = _inflated(tensors["codes"].tobytes(), rows * ROW // 2)
    except (KeyError, ValueError, zlib.error) as error:
        raise StorageError(f"{_WHAT} cannot be read: {error}") from None
    if not np.isfinite(scales).all():
        raise StorageError(f"{_WHAT} has a scale that is not finite")
    pairs = np.frombuffer(octets, np.uint8)
    levels = np.empty((len(pairs), 2), np.int8)
    levels[:, 0], levels[:, 1] = pairs & 15, pairs >> 4
    levels -= np.int8(_HIGHEST)
    left: Floats = (levels.reshape(rows, ROW) * scales).ravel()[: layout.weight_size]
    return left


def _rows(values: Floats) -> Floats:
    """A copy of ``values`` as float32[rows, ROW], zeros behind them."""
    rows = np.zeros((-(-len(values) // ROW), ROW), np.float32)
    rows.ravel()[: len(values)] = values
    return rows


def _inflated(content: bytes, size: int) -> bytes:
    """Exactly ``size`` bytes of what was deflated; raises zlib.error or ValueError."""
    inflate = zlib.decompressobj()
    octets = inflate.decompress(content, size + 1)
    if len(octets) != size:
        raise ValueError(f"{len(octets)} bytes, not {size}")
    return octets


def _norm(values: Floats) -> float:
    return float(np.sqrt(np.einsum("i,i->", values, values, dtype=np.float64)))
