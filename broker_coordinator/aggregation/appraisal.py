"""Appraisal: what an update is worth, found out once, before it is accepted.

Whatever depends on the order of a sum or on a libm (norms, medians, powers) is computed here and kept in
the journal as raw bits; the fold, and every replay of it, only multiplies and adds.
"""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np

from broker_coordinator.aggregation.aggregator import UpdateContext
from broker_coordinator.aggregation.aggregator_registry import fault_of
from broker_coordinator.aggregation.claims import Claims
from broker_coordinator.aggregation.defence import clip_factor
from broker_coordinator.aggregation.rules import FoldRules
from broker_coordinator.aggregation.scalars import to_raw
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.storage.records import Refusal
from fl_protocol.codec import HIGHEST_BUFFER, SEGMENT_ELEMENTS, Piece, UpdateCodec, codec_for, codec_seed
from fl_protocol.codec.update_codec import joined, norm_of_pieces, whole_pieces
from fl_protocol.errors import AggregatorError, CodecError
from fl_protocol.layout import TensorLayout
from fl_protocol.update import UpdateHeader

__all__ = ["MOST_KEPT", "Appraisal", "Candidate", "Unweighed", "appraise", "appraise_all", "cached_codec"]

MOST_KEPT = 1 << 21
"""float32 values that one batch keeps from appraisal to fold; updates beyond them are decoded twice."""
_DECODED_TOGETHER = 1 << 18
"""float32 values that are decoded at once: a megabyte, and twice that for their norms."""
_MOST = 2.0**90
"""No weighted value may exceed this: 2**37 of them still add up to a finite float32."""


class Candidate(Protocol):
    """An update that came whole; its header's own claims (codec, layout, size, hash, base) were checked."""

    @property
    def device(self) -> str: ...
    @property
    def update_id(self) -> bytes: ...
    @property
    def header(self) -> UpdateHeader: ...
    @property
    def payload(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """The scalars of an update as the journal keeps them: see ``AcceptedUpdate``.

    ``pieces`` are its decoded values, where they were kept: one that is folded next need not be decoded
    again. ``asked`` are the metrics that the rule asked for, and got.
    """

    weight: bytes
    scale: bytes
    norm: bytes
    staleness: int
    pieces: Sequence[Piece] | None = None
    asked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unweighed:
    """The rule failed on it, and nothing in it is known to be wrong: it stays with its device."""

    error: AggregatorError


Verdict: TypeAlias = Appraisal | Refusal | Unweighed


def appraise_all(
    candidates: Sequence[Candidate], *, state: VersionState, rules: FoldRules, reported: Container[str] = ()
) -> list[Verdict]:
    """Check whole payloads and find their scalars, against ``state``, the newest version; in their order.

    Those of a small model are decoded together, and what they hold is kept within ``MOST_KEPT``.
    ``reported`` names metrics that the fleet is known to report: a rule may ask for them, and for no others.
    One that the rule fails on holds up none of the others.
    """
    with np.errstate(over="ignore"):
        return _appraised(candidates, _Appraiser(state, rules, reported), rules)


def _appraised(candidates: Sequence[Candidate], appraiser: "_Appraiser", rules: FoldRules) -> list[Verdict]:
    size = rules.layout.size
    if size > SEGMENT_ELEMENTS or any(each.header.codec != rules.codec for each in candidates):
        kept = MOST_KEPT // size
        return [appraiser.alone(each, keep=place < kept) for place, each in enumerate(candidates)]
    verdicts: list[Verdict] = []
    together, kept = max(1, _DECODED_TOGETHER // size), MOST_KEPT // size
    for first in range(0, len(candidates), together):
        group = candidates[first : first + together]
        verdicts += appraiser.together(group, keep=first + len(group) <= kept)
    return verdicts


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
    """See ``appraise_all``; for one update. ``keep`` keeps its decoded values.

    Raises:
        AggregatorError: the rule cannot weigh it for a reason that is its own.
    """
    alone = _Alone(device=device, update_id=update_id, header=header, payload=payload)
    with np.errstate(over="ignore"):
        verdict = _Appraiser(state, rules).alone(alone, keep=keep)
    if isinstance(verdict, Unweighed):
        raise verdict.error
    return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alone:
    device: str
    update_id: bytes
    header: UpdateHeader
    payload: bytes


class _Appraiser:
    """Rules and state, with what they make for every update alike."""

    def __init__(self, state: VersionState, rules: FoldRules, reported: Container[str] = ()) -> None:
        self._state = state
        self._rules = rules
        self._reported = reported
        self._aggregator = rules.make_aggregator()
        self._staleness = rules.staleness.weight()
        self._largest_buffer = _largest_buffer(state)

    def alone(self, candidate: Candidate, *, keep: bool) -> Verdict:
        """One update, of any codec and size."""
        layout, payload = self._rules.layout, candidate.payload
        try:
            codec = cached_codec(candidate.header.codec)
            codec.check(payload, layout)
        except CodecError as error:
            return Refusal(reason="codec", message=str(error))
        seed = codec_seed(candidate.update_id)
        pieces = None
        if keep:
            decoded = codec.pieces(payload, layout, seed)
            pieces = [(start, values.copy()) for start, values in decoded]
            norm = norm_of_pieces(piece for piece in pieces if piece[0] < layout.weight_size)
            pieces = list(joined(pieces, layout))
        else:
            norm = codec.norm(payload, layout, seed)
        return self._weigh(candidate, norm, pieces)

    def together(self, candidates: Sequence[Candidate], *, keep: bool) -> list[Verdict]:
        """Updates of the rules' codec, decoded at once."""
        layout = self._rules.layout
        codec = cached_codec(self._rules.codec)
        payloads = [each.payload for each in candidates]
        try:
            codec.check_all(payloads, layout)
        except CodecError:
            return [self.alone(each, keep=keep) for each in candidates]
        decoded = codec.decode_all(payloads, layout, [codec_seed(each.update_id) for each in candidates])
        weights = decoded[:, : layout.weight_size].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", weights, weights)).astype(np.float32)
        return [
            self._weigh(each, norm, list(whole_pieces(row, layout)) if keep else None)
            for each, norm, row in zip(candidates, norms, decoded, strict=True)
        ]

    def _weigh(
        self, candidate: Candidate, decoded_norm: np.float32, pieces: Sequence[Piece] | None
    ) -> Verdict:
        rules, state, header = self._rules, self._state, candidate.header
        norm = np.float32(decoded_norm / _inflation(header.codec, rules.layout))
        staleness = max(0, state.number - header.base.number)
        context = UpdateContext(device=candidate.device, staleness=staleness, norm=norm)
        claims = Claims(header.metrics, self._reported)
        claimed = replace(header, num_examples=min(header.num_examples, rules.max_examples), metrics=claims)
        try:
            weight = np.float32(self._aggregator.weigh(claimed, context))
        except MemoryError as error:
            # Of a claim, or of this machine: nobody's update is lost for it.
            return self._unweighed(candidate, claims, error)
        except Exception as error:
            if isinstance(error, KeyError) and claims.lacks(error):
                return Refusal(reason="malformed", message=f"the aggregator cannot weigh it: {error!r}")
            if unsound := claims.unsound():
                return Refusal(reason="malformed", message=f"the aggregator cannot weigh it: {unsound}")
            return self._unweighed(candidate, claims, error)
        if not 0 <= weight < math.inf:
            if unsound := claims.unsound():
                return Refusal(reason="not_finite", message=f"the aggregator gives it {weight}: {unsound}")
            return self._unweighed(candidate, claims, f"it gave {weight}, and weights are finite, from 0 up")
        scale = np.float32(self._staleness(staleness) * clip_factor(norm, state, rules.clip))
        longest = max(float(decoded_norm), self._largest_buffer)
        heaviest = float(weight) * float(scale) * longest
        if not heaviest <= _MOST:
            return Refusal(reason="not_finite", message=f"weight {weight} times {longest} is no number")
        return Appraisal(
            weight=to_raw(weight),
            scale=to_raw(scale),
            norm=to_raw(norm),
            staleness=staleness,
            pieces=pieces,
            asked=claims.answered,
        )

    def _unweighed(self, candidate: Candidate, claims: Claims, error: Exception | str) -> Unweighed:
        what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        said = f", whose {claims}" if claims.answered else ""
        what = f"{what[:120]} (an update of {candidate.device!r}{said})"
        return Unweighed(error=fault_of(self._rules.aggregator, "weigh", what))


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
