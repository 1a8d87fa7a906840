"""EDEN's encoding of small models: all blocks of an update, and several updates, in the same calls.

Where a model has few thousand parameters a call costs more than the numbers. What comes out is what
``Eden.encode`` makes block by block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.blocks import Run, Span, payload_parts, spans
from fl_protocol.codec.bounds import bounded_scales, check_values
from fl_protocol.codec.hadamard import BLOCK, spread_bits, transform
from fl_protocol.codec.levels import half_levels, octets_of, quantize, spread_codes
from fl_protocol.codec.mask import kept_positions
from fl_protocol.codec.streams import MASK, SIGN1, SIGN2, Stream, first_octets_of
from fl_protocol.layout import TensorLayout

__all__ = ["encode_rows", "is_small"]

_SMALL = 32 * BLOCK
_ELEMENTS = 64 * BLOCK
"""Of all rows that are encoded at once: with their scratch a megabyte."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Octets = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Blocks of one width: elements ``[start, stop)`` of an update with its padding, and their scales."""

    start: int
    stop: int
    blocks: int
    width: int
    scales: slice

    @classmethod
    def of(cls, run: Run, span: Span) -> "_Run":
        start = 8 * span.code + run.first
        scales = run.scales_of(span)
        return cls(start=start, stop=start + run.elements, blocks=run.blocks, width=run.width, scales=scales)

    def of_rows(self, elements: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of these blocks of every row: [rows, blocks, width]."""
        return elements[:, self.start : self.stop].reshape(len(elements), self.blocks, self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How the updates of one layout are cut: ``starts`` has the first element of each block, and ``factors``
    what its scale is multiplied by, as the kept values stand for the others too."""

    spans: tuple[Span, ...]
    runs: tuple[_Run, ...]
    elements: int
    starts: npt.NDArray[np.intp]
    factors: Doubles


def is_small(layout: TensorLayout, keep: float) -> bool:
    """Whether an update of this layout is encoded at once."""
    return 8 * payload_parts(layout, keep)[1] <= _SMALL


def encode_rows(
    deltas: Floats, layout: TensorLayout, seeds: Sequence[bytes], *, bits: int, keep: float
) -> list[bytes]:
    """The payloads of float32[rows, n], each with its own codec seed.

    Raises:
        CodecError: a value is NaN, infinite, or above 2^100 in magnitude.
    """
    check_values(deltas, "the delta")
    plan = _plan(layout, keep)
    most = max(1, _ELEMENTS // plan.elements)
    payloads = []
    for first in range(0, len(deltas), most):
        rows = slice(first, first + most)
        payloads += _encoded(deltas[rows], plan, seeds[rows], bits, keep)
    return payloads


def _encoded(deltas: Floats, plan: _Plan, seeds: Sequence[bytes], bits: int, keep: float) -> list[bytes]:
    octets = plan.elements // 8
    work = np.zeros((len(deltas), plan.elements), np.float32)
    _lay_out(deltas, plan, seeds, keep, out=work)
    exact = work.astype(np.float64)
    np.multiply(exact, exact, out=exact)
    energy = np.add.reduceat(exact, plan.starts, axis=1)
    room = np.empty_like(work)
    for signs in _signs(seeds, octets):
        spread_bits(signs, room)
        np.multiply(work, room, out=work)
        for run in plan.runs:
            transform(run.of_rows(work), run.of_rows(room))
    codes = octets_of(_codes(work, room, energy, plan, bits), bits)
    if bits > 1:
        spread_codes(codes, bits, room)
        np.multiply(room, work, out=exact, dtype=np.float64)
    else:
        np.copyto(exact, room)
    inner = np.add.reduceat(exact, plan.starts, axis=1)
    scales = np.zeros(energy.shape)
    np.divide(energy, inner, out=scales, where=inner > 0)
    np.multiply(scales, plan.factors, out=scales)
    head = 4 * len(plan.starts)
    payloads = np.empty((len(deltas), head + bits * octets), np.uint8)
    payloads[:, :head] = bounded_scales(scales).view(np.uint8)
    payloads[:, head:] = codes.reshape(len(deltas), -1)
    return [payload.tobytes() for payload in payloads]


def _codes(work: Floats, room: Floats, energy: Doubles, plan: _Plan, bits: int) -> Octets:
    """The codes of rotated values, in wire order: uint8 of their shape. With one bit ``room`` takes their
    magnitudes, else what was in it is lost."""
    if bits == 1:
        return quantize(work, np.ones(1, np.float32), bits, room)
    codes = np.empty(work.shape, np.uint8)
    for run in plan.runs:
        # rotating twice multiplies a block's energy by the square of its width
        factors = half_levels(energy[:, run.scales] * run.width)[..., np.newaxis]
        run.of_rows(codes)[:] = quantize(run.of_rows(work), factors, bits, run.of_rows(room))
    return codes


def _lay_out(deltas: Floats, plan: _Plan, seeds: Sequence[bytes], keep: float, *, out: Floats) -> None:
    """Copy the kept values to where their blocks are."""
    masks = [Stream(seed, MASK) for seed in seeds] if keep < 1 else []
    for span in plan.spans:
        segment = span.segment
        values = deltas[:, segment.start : segment.start + segment.size]
        place = out[:, 8 * span.code : 8 * span.code + span.kept]
        if keep == 1:
            np.copyto(place, values)
        for row, mask in enumerate(masks):
            place[row] = values[row, kept_positions(mask, segment.size, span.kept)]


def _signs(seeds: Sequence[bytes], octets: int) -> Sequence[Octets]:
    """The signs of all rows, of the first pass and of the second; every span has whole words of them, so that
    one draw gives those of all."""
    if len(seeds) == 1:
        return [Stream(seeds[0], purpose).octets(octets) for purpose in (SIGN1, SIGN2)]
    first, second = first_octets_of(seeds, (SIGN1, SIGN2), octets)
    return first.reshape(-1), second.reshape(-1)


@lru_cache(maxsize=8)
def _plan(layout: TensorLayout, keep: float) -> _Plan:
    found = spans(layout, keep)
    runs = tuple(_Run.of(run, span) for span in found for run in span.runs())
    starts = [run.start + number * run.width for run in runs for number in range(run.blocks)]
    factors = [span.segment.size / span.kept for span in found for _ in range(span.blocks)]
    return _Plan(
        spans=found,
        runs=runs,
        elements=8 * payload_parts(layout, keep)[1],
        starts=np.array(starts, np.intp),
        factors=np.array(factors),
    )
