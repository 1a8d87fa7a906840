"""The codec ``sparse``: of each segment only the largest elements, as small whole numbers in bit planes.

Sattler et al.: Robust and Communication-Efficient Federated Learning from Non-IID Data (2019), the way up,
with more than one level. What a payload leaves out is not lost where ``feedback`` is on: the device adds it
to its next delta (Seide et al.: 1-Bit Stochastic Gradient Descent, 2014; Karimireddy et al.: Error Feedback
Fixes SignSGD, 2019).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.bounds import bounded_scales, check_length, check_scales, check_values, fitting_vector
from fl_protocol.codec.gaps import (
    HIGHEST_SHIFT,
    cheapest_shift,
    gaps_of,
    positions_of,
    read_quotients,
    unary,
)
from fl_protocol.codec.largest import fitted_levels, largest_positions
from fl_protocol.codec.mask import kept_count
from fl_protocol.codec.segments import Segment, longest_segment, segments
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.codec.update_codec import Piece, blank_payload
from fl_protocol.errors import CodecError
from fl_protocol.layout import TensorLayout

__all__ = ["HIGHEST_BITS", "HIGHEST_KEEP", "Sparse"]

HIGHEST_BITS = 8
HIGHEST_KEEP = 0.5
"""Above, a mask and two bits for every element would be shorter."""
_ENTRY = np.dtype([("scale", "<f4"), ("count", "<u2"), ("quotients", "<u2"), ("shift", "u1")])
"""What the table at the head of a payload says of a segment; ``quotients`` is the octets of their plane."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Octets = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """Biased: of each segment at most the share ``keep``, each with a sign and a level, ``bits`` together."""

    keep: float = 0.05
    bits: int = 2
    feedback: bool = True

    @property
    def spec(self) -> CodecSpec:
        """As ``sparse(bits=2,keep=0.05)``, with ``feedback=0`` where that is off."""
        without = {} if self.feedback else {"feedback": 0.0}
        return CodecSpec(name="sparse", options={"bits": float(self.bits), "keep": self.keep, **without})

    @property
    def unbiased(self) -> bool:
        """False: small elements are never sent, whatever the seed."""
        return False

    @property
    def exact(self) -> bool:
        """False: what is zero, and where the largest elements lie, decides on the length."""
        return False

    def largest(self, layout: TensorLayout) -> int:
        """The table, and for each segment the most that its positions and codes can come to."""
        return sum(_ENTRY.itemsize + self._most_octets(segment.size) for segment in segments(layout))

    def encode(self, delta: Floats, layout: TensorLayout, seed: bytes) -> bytes:
        """Take the largest elements of each segment and the levels nearest to them; the seed is not used."""
        vector = fitting_vector(delta, layout)
        parts = list(segments(layout))
        table = np.zeros(len(parts), _ENTRY)
        work = np.empty(longest_segment(layout), np.float32)
        payload = blank_payload(table.nbytes)
        payload.seek(table.nbytes)
        for entry, segment in enumerate(parts):
            values = vector[segment.start : segment.start + segment.size]
            check_values(values, "the delta")
            positions, levels, scale = self._chosen(values, work[: segment.size])
            gaps = gaps_of(positions)
            code = cheapest_shift(gaps)
            table[entry] = (scale, len(gaps), code.octets, code.shift)
            payload.write(unary(gaps >> code.shift).data)
            payload.write(_packed(gaps, levels, shift=code.shift, bits=self.bits).data)
        payload.seek(0)
        payload.write(table.tobytes())
        return payload.getvalue()

    def encode_all(self, deltas: Floats, layout: TensorLayout, seeds: Sequence[bytes]) -> list[bytes]:
        """Encode one after the other."""
        return [self.encode(delta, layout, seed) for delta, seed in zip(deltas, seeds, strict=True)]

    def check(self, payload: bytes, layout: TensorLayout) -> None:
        """Verify the table, the length that follows from it, and the positions in each segment."""
        for plane in self._planes(payload, layout):
            plane.read()

    def norm(self, payload: bytes, layout: TensorLayout, seed: bytes) -> np.float32:
        """The L2 norm of the decoded update: from levels and scales."""
        energy = 0.0
        for plane in self._planes(payload, layout):
            _, levels = plane.read()
            energy += float(np.square(levels.astype(np.float64)).sum()) * float(plane.scale) ** 2
        return np.float32(math.sqrt(energy))

    def expected_inflation(self, layout: TensorLayout) -> float:
        """1: a first update is shorter than its delta, and later ones carry what was left out of it."""
        return 1.0

    def pieces(self, payload: bytes, layout: TensorLayout, seed: bytes) -> Iterator[Piece]:
        """Spread the levels over zeros, segment by segment; the seed is not used."""
        piece = np.empty(longest_segment(layout), np.float32)
        for plane in self._planes(payload, layout):
            values = piece[: plane.segment.size]
            plane.spread(values)
            yield plane.segment.start, values

    def check_all(self, payloads: Sequence[bytes], layout: TensorLayout) -> None:
        """Check one after the other."""
        for payload in payloads:
            self.check(payload, layout)

    def decode_all(self, payloads: Sequence[bytes], layout: TensorLayout, seeds: Sequence[bytes]) -> Floats:
        """Decode one after the other; the seeds are not used."""
        decoded = np.empty((len(payloads), layout.size), np.float32)
        for row, payload in zip(decoded, payloads, strict=True):
            for plane in self._planes(payload, layout):
                plane.spread(row[plane.segment.start : plane.segment.start + plane.segment.size])
        return decoded

    def _chosen(self, values: Floats, work: Floats) -> tuple[npt.NDArray[np.intp], Integers, np.float32]:
        """What travels of a segment: positions, levels with their signs, and the scale."""
        magnitudes = np.abs(values, out=work)
        positions = largest_positions(magnitudes, kept_count(len(values), self.keep))
        levels, fitted = fitted_levels(magnitudes[positions], self._highest)
        scale = bounded_scales(np.array([fitted]))[0]
        sent = levels > 0 if scale else np.zeros(len(levels), bool)
        positions, levels = positions[sent], levels[sent]
        return positions, np.where(values[positions] < 0, -levels, levels), scale

    def _planes(self, payload: bytes, layout: TensorLayout) -> "Iterator[_Planes]":
        """What a payload says of each segment, in order; its length and table are found consistent first."""
        parts = list(segments(layout))
        table = self._table(payload, layout, parts)
        received = np.frombuffer(payload, np.uint8)
        at = table.nbytes
        for entry, segment in zip(table, parts, strict=True):
            count, octets, shift = int(entry["count"]), int(entry["quotients"]), int(entry["shift"])
            codes = at + octets
            end = codes + -(-count * (shift + self.bits) // 8)
            yield _Planes(
                segment=segment,
                scale=np.float32(entry["scale"]),
                count=count,
                shift=shift,
                bits=self.bits,
                quotients=received[at:codes],
                codes=received[codes:end],
            )
            at = end

    def _table(self, payload: bytes, layout: TensorLayout, parts: Sequence[Segment]) -> npt.NDArray[np.void]:
        """The table of a payload; raises CodecError."""
        head, most = _ENTRY.itemsize * len(parts), self.largest(layout)
        if not head <= len(payload) <= most:
            raise CodecError(
                f"the payload has {len(payload)} bytes, its codec and layout make {head} to {most}"
            )
        table = np.frombuffer(payload, _ENTRY, len(parts))
        check_scales(np.ascontiguousarray(table["scale"]))
        sizes = np.array([segment.size for segment in parts])
        counts, shifts = table["count"].astype(np.int64), table["shift"].astype(np.int64)
        allowed = np.array([kept_count(segment.size, self.keep) for segment in parts])
        empty = (table["scale"] == 0) & (shifts == 0) & (table["quotients"] == 0)
        longest = -(-(counts + (sizes - counts >> np.minimum(shifts, HIGHEST_SHIFT))) // 8)
        full = (table["scale"] != 0) & (shifts <= HIGHEST_SHIFT) & (table["quotients"] <= longest)
        wrong = (counts > allowed) | ~np.where(counts == 0, empty, full)
        if wrong.any():
            raise CodecError(f"the table's entry {int(np.argmax(wrong))} fits no segment: {table[wrong][0]}")
        codes = -(-counts * (shifts + self.bits) // 8)
        check_length(payload, head + int(table["quotients"].sum(dtype=np.int64) + codes.sum()))
        return table

    @property
    def _highest(self) -> int:
        """The highest level."""
        return 1 << self.bits - 1

    def _most_octets(self, size: int) -> int:
        """Octets of planes that a segment's cheapest code never exceeds; both planes' last octets filled."""
        count = kept_count(size, self.keep)
        shifts = range(HIGHEST_SHIFT + 1)
        bits = min(count * (1 + shift + self.bits) + (size - count >> shift) for shift in shifts)
        return (bits + 14) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planes:
    """What a payload says of one segment."""

    segment: Segment
    scale: np.float32
    count: int
    shift: int
    bits: int
    quotients: Octets
    codes: Octets

    def read(self) -> tuple[Integers, Integers]:
        """Positions and levels: int32[count] each.

        Raises:
            CodecError: a position lies outside of the segment, or something else is not as it is encoded.
        """
        used = self.count * (self.shift + self.bits)
        bits = np.unpackbits(self.codes, bitorder="little")
        if bits[used:].any():
            raise CodecError("a filling bit behind a segment's codes is set")
        planes = bits[:used].reshape(self.shift + self.bits, self.count)
        gaps = read_quotients(self.quotients, self.count) << self.shift
        gaps |= _numbers(planes[: self.shift])
        positions = positions_of(gaps)
        if self.count and positions[-1] >= self.segment.size:
            raise CodecError(f"position {positions[-1]} in a segment of {self.segment.size}")
        levels = _numbers(planes[self.shift + 1 :]) + 1
        return positions, np.where(planes[self.shift], -levels, levels)

    def spread(self, out: Floats) -> None:
        """Write the decoded segment to ``out``: float32[size]."""
        positions, levels = self.read()
        out.fill(0)
        out[positions] = levels.astype(np.float32) * self.scale


def _packed(gaps: Integers, levels: Integers, *, shift: int, bits: int) -> Octets:
    """The codes of a segment: planes of remainders, of signs, and of magnitudes less 1, lowest bit first."""
    magnitudes = np.abs(levels) - 1
    planes = [_plane(gaps, place) for place in range(shift)]
    planes += [(levels < 0).view(np.uint8), *(_plane(magnitudes, place) for place in range(bits - 1))]
    return np.packbits(np.concatenate(planes), bitorder="little")


def _plane(numbers: Integers, place: int) -> Octets:
    return (numbers >> place & 1).astype(np.uint8)


def _numbers(planes: Octets) -> Integers:
    """The numbers whose bits stand in ``planes``, the lowest first: int32[count]."""
    numbers = np.zeros(planes.shape[1], np.int32)
    for place, plane in enumerate(planes):
        numbers |= plane.astype(np.int32) << place
    return numbers
