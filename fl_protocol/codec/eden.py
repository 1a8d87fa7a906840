"""The codec ``eden``: rotate, send one of few levels, and one scale per block that makes the mean error zero.

Vargaftik et al.: EDEN: Communication-Efficient and Robust Distributed Mean Estimation for Federated
Learning (ICML 2022), with whole-numbered levels, blocks of at most 1024 and a seeded mask for
fractional rates.

A block's scale is ``|x|^2 / <rotated x, levels>``: the decoded block then has its whole error at right
angles to x, and over many rotations that error averages out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.blocks import BATCH, Run, Span, payload_parts, spans
from fl_protocol.codec.bounds import bounded_scales, check_length, check_scales, check_values, fitting_vector
from fl_protocol.codec.eden_rows import encode_rows, is_small
from fl_protocol.codec.hadamard import BLOCK
from fl_protocol.codec.levels import (
    code_energy,
    energy_factor,
    half_levels,
    octets_of,
    quantize,
    spread_codes,
)
from fl_protocol.codec.mask import kept_count, kept_positions
from fl_protocol.codec.rotation import STRIP, Rotation, from_strips, to_strips
from fl_protocol.codec.segments import longest_segment
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.codec.streams import MASK, SIGN1, SIGN2, Stream, first_octets_of
from fl_protocol.codec.update_codec import Piece, blank_payload
from fl_protocol.errors import LayoutError
from fl_protocol.layout import TensorLayout

__all__ = ["Eden"]

_ONES = np.ones(BLOCK // STRIP, np.float32)
_LEAST_ENERGY, _MOST_ENERGY = 2.0**-100, 2.0**100

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Octets = npt.NDArray[np.uint8]
Signs = tuple[Octets, Octets]


@dataclass(frozen=True, slots=True, kw_only=True)
class Eden:
    """Unbiased: ``bits`` (1, 2, 4) per kept parameter, four bytes per block.

    ``keep`` in (0, 1] is the share kept.
    """

    bits: int = 1
    keep: float = 1.0

    @property
    def spec(self) -> CodecSpec:
        """As ``eden(bits=1)``, with ``keep`` where it is below 1."""
        masked = {} if self.keep == 1 else {"keep": self.keep}
        return CodecSpec(name="eden", options={"bits": float(self.bits), **masked})

    @property
    def unbiased(self) -> bool:
        """True: errors average out over seeds."""
        return True

    @property
    def exact(self) -> bool:
        """True: what is kept is drawn from the seed, and so many blocks there are."""
        return True

    @property
    def feedback(self) -> bool:
        """False: nothing is left out for good."""
        return False

    def largest(self, layout: TensorLayout) -> int:
        """Four bytes per block, then ``bits`` bits per element of each block."""
        scales, octets = payload_parts(layout, self.keep)
        return 4 * scales + self.bits * octets

    def encode(self, delta: Floats, layout: TensorLayout, seed: bytes) -> bytes:
        """Rotate, take the nearest levels, and fit one scale per block."""
        vector = fitting_vector(delta, layout)
        if is_small(layout, self.keep):
            return encode_rows(vector[np.newaxis], layout, [seed], bits=self.bits, keep=self.keep)[0]
        count, octets = payload_parts(layout, self.keep)
        fitted = np.zeros(count)
        streams = _Streams(seed)
        rotation = _rotation(layout)
        payload = blank_payload(4 * count + self.bits * octets)
        payload.seek(4 * count)
        for span in spans(layout, self.keep):
            segment = span.segment
            values = vector[segment.start : segment.start + segment.size]
            if self.keep < 1:
                check_values(values, "the delta")
                values = values[kept_positions(streams.mask, segment.size, span.kept)]
            signs = streams.signs(span.octets)
            for run in span.runs():
                blocks = _padded(values[run.first : run.first + run.values], run)
                energy = _energies(blocks)
                rotated = rotation.rotate(blocks, signs[0][run.octets], signs[1][run.octets])
                codes, inner = _fit(rotated, energy * run.width, self.bits, rotation.spare(run.elements))
                np.divide(energy, inner, out=fitted[run.scales_of(span)], where=inner > 0)
                payload.write(from_strips(codes, run.blocks, self.bits).data)
            # the kept values stand for the others too; the factor travels inside the scale
            fitted[span.scale : span.scale + span.blocks] *= segment.size / span.kept
        payload.seek(0)
        payload.write(bounded_scales(fitted).data)
        return payload.getvalue()

    def encode_all(self, deltas: Floats, layout: TensorLayout, seeds: Sequence[bytes]) -> list[bytes]:
        """All together where the model is small."""
        if deltas.dtype != np.float32 or deltas.shape != (len(seeds), layout.size):
            raise LayoutError(f"expected float32[{len(seeds)}, {layout.size}], got {deltas.shape}")
        if is_small(layout, self.keep):
            return encode_rows(deltas, layout, seeds, bits=self.bits, keep=self.keep)
        return [self.encode(delta, layout, seed) for delta, seed in zip(deltas, seeds, strict=True)]

    def check(self, payload: bytes, layout: TensorLayout) -> None:
        """Verify the length and the scales; every pattern of code bits is valid."""
        count, octets = payload_parts(layout, self.keep)
        check_length(payload, 4 * count + self.bits * octets)
        check_scales(np.frombuffer(payload, "<f4", count))

    def norm(self, payload: bytes, layout: TensorLayout, seed: bytes) -> np.float32:
        """The L2 norm of the decoded update: from the scales alone, but for padded blocks."""
        source = _Source(payload, layout, self, seed)
        energy = 0.0
        for span in source.spans:
            signs = source.streams.signs(span.octets)
            for run in span.runs():
                if run.values == run.elements:
                    scales = source.scales_of(run, span).astype(np.float64)
                    energy += float((scales * scales) @ source.energies(run, span)) * run.width**2
                else:
                    values = np.empty(run.values, np.float32)
                    source.decode(run, span, signs, out=values)
                    exact = values.astype(np.float64)
                    energy += float(exact @ exact)
        return np.float32(math.sqrt(energy))

    def expected_inflation(self, layout: TensorLayout) -> float:
        """With one bit ``sqrt(pi / 2 / keep)`` for long tensors, less where blocks are padded."""
        energy = 0.0
        excess = energy_factor(self.bits) - 1
        for span in spans(layout, self.keep):
            for run in span.runs():
                # the error has that much of the block's energy; its share in the padding is dropped
                error = excess * run.values / run.elements
                energy += (1 + error) * run.values * (span.segment.size / span.kept) ** 2
        return math.sqrt(energy / layout.size)

    def pieces(self, payload: bytes, layout: TensorLayout, seed: bytes) -> Iterator[Piece]:
        """Rotate the codes back and scale them, segment by segment."""
        source = _Source(payload, layout, self, seed)
        longest = longest_segment(layout)
        piece = np.empty(longest, np.float32)
        room = np.empty(kept_count(longest, self.keep), np.float32)
        for span in source.spans:
            segment = span.segment
            values = piece[: segment.size]
            kept = room[: span.kept] if self.keep < 1 else values
            signs = source.streams.signs(span.octets)
            for run in span.runs():
                source.decode(run, span, signs, out=kept[run.first : run.first + run.values])
            if self.keep < 1:
                values.fill(0)
                values[kept_positions(source.streams.mask, segment.size, span.kept)] = kept
            yield segment.start, values

    def check_all(self, payloads: Sequence[bytes], layout: TensorLayout) -> None:
        """Verify the lengths, and the scales of all payloads together."""
        count, octets = payload_parts(layout, self.keep)
        for payload in payloads:
            check_length(payload, 4 * count + self.bits * octets)
        check_scales(np.frombuffer(b"".join([payload[: 4 * count] for payload in payloads]), "<f4"))

    def decode_all(self, payloads: Sequence[bytes], layout: TensorLayout, seeds: Sequence[bytes]) -> Floats:
        """Rotate the codes of all payloads back together, run by run, and scale them."""
        decoded = np.zeros((len(payloads), layout.size), np.float32)
        count, octets = payload_parts(layout, self.keep)
        received = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), self.largest(layout))
        scales = np.ascontiguousarray(received[:, : 4 * count]).view("<f4")
        codes = received[:, 4 * count :]
        # every span has whole words of signs, so that one draw gives those of all spans
        signs = first_octets_of(seeds, (SIGN1, SIGN2), octets)
        masks = [Stream(seed, MASK) for seed in seeds] if self.keep < 1 else []
        rotation = Rotation(BATCH * BLOCK)
        for span in spans(layout, self.keep):
            segment = span.segment
            out = decoded[:, segment.start : segment.start + segment.size]
            kept = out if self.keep == 1 else np.empty((len(payloads), span.kept), np.float32)
            for run in span.runs():
                bits = slice(span.code + run.octets.start, span.code + run.octets.stop)
                code = codes[:, self.bits * bits.start : self.bits * bits.stop]
                fitted = scales[:, run.scales_of(span)]
                part = kept[:, run.first : run.first + run.values]
                rows = (signs[0][:, bits], signs[1][:, bits])
                _decode_rows(code, rows, fitted, run, rotation, bits=self.bits, out=part)
            if self.keep < 1:
                for row, mask in enumerate(masks):
                    out[row, kept_positions(mask, segment.size, span.kept)] = kept[row]
        return decoded


class _Streams:
    """The random streams of one update."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._sign1 = Stream(seed, SIGN1)
        self._sign2 = Stream(seed, SIGN2)

    @cached_property
    def mask(self) -> Stream:
        """The stream that draws what is kept; made where something is left out."""
        return Stream(self._seed, MASK)

    def signs(self, octets: int) -> Signs:
        """The next ``octets`` bytes of both sign streams."""
        return self._sign1.octets(octets), self._sign2.octets(octets)


class _Source:
    """A checked payload, with the room to decode its blocks."""

    def __init__(self, payload: bytes, layout: TensorLayout, codec: Eden, seed: bytes) -> None:
        self.spans = spans(layout, codec.keep)
        self._bits = codec.bits
        count = self.spans[-1].scale + self.spans[-1].blocks
        self.streams = _Streams(seed)
        self._scales = np.frombuffer(payload, "<f4", count)
        self._codes = np.frombuffer(payload, np.uint8, offset=4 * count)
        self._rotation = _rotation(layout)

    def scales_of(self, run: Run, span: Span) -> Floats:
        """The scales of a run of blocks: float32[blocks]."""
        return self._scales[run.scales_of(span)]

    def energies(self, run: Run, span: Span) -> Doubles:
        """The sum of the squared levels of each block of a run: float64[blocks]."""
        if self._bits == 1:
            return np.full(run.blocks, float(run.width))
        return code_energy(self._codes_of(run, span), self._bits, run.blocks)

    def decode(self, run: Run, span: Span, signs: Signs, *, out: Floats) -> None:
        """Write the kept values of a run of blocks to ``out``: float32[values]."""
        codes = to_strips(self._codes_of(run, span), run.blocks, self._bits)
        spread_codes(codes, self._bits, self._rotation.strips(run.elements))
        whole = out if len(out) == run.elements else np.empty(run.elements, np.float32)
        blocks = whole.reshape(run.blocks, run.width)
        self._rotation.unrotate(signs[0][run.octets], signs[1][run.octets], self.scales_of(run, span), blocks)
        if whole is not out:
            np.copyto(out, whole[: run.values])

    def _codes_of(self, run: Run, span: Span) -> Octets:
        """The octets of a run's codes."""
        return self._codes[self._bits * (span.code + run.octets.start) :][: self._bits * run.elements // 8]


def _decode_rows(
    codes: Octets, signs: Signs, scales: Floats, run: Run, rotation: Rotation, *, bits: int, out: Floats
) -> None:
    """Decode the same run of blocks of many payloads, a cacheful at a time: float32[payloads, values]."""
    sign1, sign2 = signs
    most = max(1, BATCH * BLOCK // run.elements)
    room = np.empty(min(most, len(codes)) * run.elements, np.float32)
    for first in range(0, len(codes), most):
        rows = slice(first, first + most)
        count = len(codes[rows])
        whole = room[: count * run.elements]
        blocks = whole.reshape(count * run.blocks, run.width)
        spread_codes(to_strips(codes[rows].ravel(), len(blocks), bits), bits, rotation.strips(whole.size))
        rotation.unrotate(sign1[rows].ravel(), sign2[rows].ravel(), scales[rows].ravel(), blocks)
        np.copyto(out[rows], whole.reshape(count, run.elements)[:, : run.values])


def _padded(values: Floats, run: Run) -> Floats:
    """The values of a run as its blocks, filled with zeros: float32[blocks, width]."""
    if run.values < run.elements:
        values = np.append(values, np.zeros(run.elements - run.values, np.float32))
    return values.reshape(run.blocks, run.width)


def _energies(blocks: Floats) -> Doubles:
    """The sum of squares of each row: float64[blocks].

    Raises:
        CodecError: a value is NaN, infinite, or above 2^100 in magnitude.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        energies = _squared(blocks).astype(np.float64)
    # where squares may have left the range of float32, and for NaN
    if not _LEAST_ENERGY <= energies.min() <= energies.max() <= _MOST_ENERGY:
        check_values(blocks, "the delta")
        energies = _squared(blocks.astype(np.float64))
    return energies


def _squared(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # one product per block: a sum must not depend on how many blocks are summed together
    squared: npt.NDArray[Any] = np.matmul(rows[:, np.newaxis, :], rows[:, :, np.newaxis])
    return squared.reshape(-1)


def _fit(rotated: Floats, energies: Doubles, bits: int, room: Floats) -> tuple[Octets, Doubles]:
    """The packed codes of rotated blocks, and the product of each with its levels: float64[blocks].

    Args:
        rotated: float32[B / 16, blocks * 16], in strips, as the codes are.
        energies: float64[blocks]: the mean square of each rotated block.
        room: float32 of the same size; its content is lost.
    """
    products = room.reshape(rotated.shape)
    codes = quantize(rotated, np.repeat(half_levels(energies), STRIP), bits, products)
    octets = octets_of(codes, bits)
    if bits > 1:
        spread_codes(octets, bits, products)
        np.multiply(products, rotated, out=products)
    # 64 at most in float32, which is exact for small whole numbers, and the rest in float64
    partial = np.matmul(_ONES[: len(products)], products).astype(np.float64)
    return octets, np.matmul(partial.reshape(-1, STRIP), np.ones(STRIP))


def _rotation(layout: TensorLayout) -> Rotation:
    """Room for one batch of blocks of any segment of the layout."""
    return Rotation(min(BATCH, -(-longest_segment(layout) // BLOCK)) * BLOCK)
