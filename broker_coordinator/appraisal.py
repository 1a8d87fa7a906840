"""Appraisal: what an update is worth, found out once, before it is accepted.

Whatever depends on the order of a sum or on a libm (norms, medians, powers) is computed here and kept in
the journal as raw bits; the fold, and every replay of it, only multiplies and adds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from broker_coordinator.aggregator import UpdateContext
from broker_coordinator.defence import clip_factor
from broker_coordinator.records import Refusal
from broker_coordinator.rules import FoldRules
from broker_coordinator.scalars import to_raw
from broker_coordinator.version_state import VersionState
from fl_protocol.codec import HIGHEST_BUFFER, Piece, UpdateCodec, codec_for, codec_seed
from fl_protocol.codec.update_codec import norm_of_pieces
from fl_protocol.errors import CodecError
from fl_protocol.layout import TensorLayout
from fl_protocol.update import UpdateHeader

__all__ = ["Appraisal", "appraise", "cached_codec"]

_MOST = 2.0**90
"""No weighted value may exceed this: 2**37 of them still add up to a finite float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """The scalars of an update as the journal keeps them: see ``AcceptedUpdate``.

    ``pieces`` are its decoded values, where they were to be kept.
    """

    weight: bytes
    scale: bytes
    norm: bytes
    staleness: int
    pieces: Sequence[Piece] | None = None


def appraise(
    update_id: bytes,
    header: UpdateHeader,
    payload: bytes,
    *,
    device: str,
    state: VersionState,
    rules: FoldRules,
    keep: bool = False,
) -> Appraisal | Refusal:
    """Check a whole payload and find its scalars, against ``state``, the newest version.

    The header's own claims (codec, layout, size, hash, base) have been checked by the caller. With ``keep``
    the decoded values are kept, in memory of their own: an update that is folded next need not be decoded
    again.
    """
    try:
        codec = cached_codec(header.codec)
        codec.check(payload, rules.layout)
    except CodecError as error:
        return Refusal(reason="codec", message=str(error))
    seed = codec_seed(update_id)
    pieces = None
    if keep:
        decoded = codec.pieces(payload, rules.layout, seed)
        pieces = [(start, values.copy()) for start, values in decoded]
        decoded_norm = norm_of_pieces(piece for piece in pieces if piece[0] < rules.layout.weight_size)
    else:
        decoded_norm = codec.norm(payload, rules.layout, seed)
    norm = np.float32(decoded_norm / _inflation(header.codec, rules.layout))
    staleness = max(0, state.number - header.base.number)
    context = UpdateContext(device=device, staleness=staleness, norm=norm)
    claimed = replace(header, num_examples=min(header.num_examples, rules.max_examples))
    try:
        with np.errstate(over="ignore"):
            weight = np.float32(rules.make_aggregator().weigh(claimed, context))
    except Exception as error:
        # An aggregator may be a user's own, and ask for a metric that this device does not report.
        return Refusal(reason="malformed", message=f"the aggregator cannot weigh it: {error!r}")
    scale = np.float32(rules.staleness.weight()(staleness) * clip_factor(norm, state, rules.clip))
    longest = max(float(decoded_norm), _largest_buffer(state))
    heaviest = float(weight) * float(scale) * longest
    if not (math.isfinite(heaviest) and weight >= 0 and heaviest <= _MOST):
        return Refusal(reason="not_finite", message=f"weight {weight} times {longest} is no number")
    return Appraisal(
        weight=to_raw(weight), scale=to_raw(scale), norm=to_raw(norm), staleness=staleness, pieces=pieces
    )


def _largest_buffer(state: VersionState) -> float:
    """What a device's buffers may come to, in magnitude; 0 where there are none."""
    return float(np.abs(state.buffers).max()) + HIGHEST_BUFFER if state.buffer_size else 0.0


@lru_cache(maxsize=8)
def _inflation(spec: str, layout: TensorLayout) -> np.float32:
    return np.float32(cached_codec(spec).expected_inflation(layout))


@lru_cache(maxsize=64)
def cached_codec(spec: str) -> UpdateCodec:
    """The codec of a specification; raises CodecError."""
    return codec_for(spec)
