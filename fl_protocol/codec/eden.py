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

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.blocks import BATCH, Run, Span, payload_parts, spans
from fl_protocol.codec.bounds import bounded_scales, check_length, check_scales, check_values, fitting_vector
from fl_protocol.codec.eden_rows import encode_rows, is_small
from fl_protocol.codec.hadamard import BLOCK, rotate, unrotate
from fl_protocol.codec.levels import code_energy, energy_factor, octets_of, quantize, spread_codes
from fl_protocol.codec.mask import kept_count, kept_positions
from fl_protocol.codec.segments import longest_segment
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.codec.streams import MASK, SIGN1, SIGN2, Stream, first_octets_of
from fl_protocol.codec.update_codec import Piece, blank_payload
from fl_protocol.errors import LayoutError
from fl_protocol.layout import TensorLayout

__all__ = ["Eden"]

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
        scales = np.zeros(count, "<f4")
        streams = _Streams(seed)
        work, scratch = _room(layout), _room(layout)
        wide = np.empty(len(work))
        payload = blank_payload(4 * count + self.bits * octets)
        payload.seek(4 * count)
        for span in spans(layout, self.keep):
            segment = span.segment
            values = vector[segment.start : segment.start + segment.size]
            check_values(values, "the delta")
            if self.keep < 1:
                values = values[kept_positions(streams.mask, segment.size, span.kept)]
            signs = streams.signs(span.octets)
            fitted = np.empty(span.blocks)
            for run in span.runs():
                blocks = work[: run.elements]
                np.copyto(blocks[: run.values], values[run.first : run.first + run.values])
                blocks[run.values :] = 0
                blocks = blocks.reshape(run.blocks, run.width)
                rows = (signs[0][run.octets], signs[1][run.octets])
                codes, fitted[run.scales] = _rotate_and_fit(
                    blocks, rows, bits=self.bits, scratch=scratch, wide=wide
                )
                payload.write(octets_of(codes, self.bits).data)
            # the kept values stand for the others too; the factor travels inside the scale
            fitted *= segment.size / span.kept
            scales[span.scale : span.scale + span.blocks] = bounded_scales(fitted)
        payload.seek(0)
        payload.write(scales.data)
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
        for span in spans(layout, self.keep):
            segment = span.segment
            out = decoded[:, segment.start : segment.start + segment.size]
            kept = out if self.keep == 1 else np.empty((len(payloads), span.kept), np.float32)
            for run in span.runs():
                bits = slice(span.code + run.octets.start, span.code + run.octets.stop)
                code = codes[:, self.bits * bits.start : self.bits * bits.stop]
                fitted = scales[:, span.scale + run.scales.start : span.scale + run.scales.stop]
                part = kept[:, run.first : run.first + run.values]
                rows = (signs[0][:, bits], signs[1][:, bits])
                _decode_rows(code, rows, fitted, run, bits=self.bits, out=part)
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
        self._work, self._scratch = _room(layout), _room(layout)

    def scales_of(self, run: Run, span: Span) -> Floats:
        """The scales of a run of blocks: float32[blocks]."""
        return self._scales[span.scale : span.scale + span.blocks][run.scales]

    def energies(self, run: Run, span: Span) -> Doubles:
        """The sum of the squared levels of each block of a run: float64[blocks]."""
        if self._bits == 1:
            return np.full(run.blocks, float(run.width))
        return code_energy(self._codes_of(run, span), self._bits, run.blocks)

    def decode(self, run: Run, span: Span, signs: Signs, *, out: Floats) -> None:
        """Write the kept values of a run of blocks to ``out``: float32[values]."""
        flat = self._work[: run.elements]
        blocks = flat.reshape(run.blocks, run.width)
        sign1, sign2 = signs
        spread_codes(self._codes_of(run, span), self._bits, blocks)
        unrotate(blocks, sign1[run.octets], sign2[run.octets], self._scratch)
        np.multiply(blocks, self.scales_of(run, span)[:, np.newaxis], out=blocks)
        # the sign of a zero depends on the order of summation: adding +0 makes every zero +0
        np.add(flat[: run.values], np.float32(0), out=out)

    def _codes_of(self, run: Run, span: Span) -> Octets:
        """The octets of a run's codes."""
        return self._codes[self._bits * (span.code + run.octets.start) :][: self._bits * run.elements // 8]


def _decode_rows(codes: Octets, signs: Signs, scales: Floats, run: Run, *, bits: int, out: Floats) -> None:
    """Decode the same run of blocks of many payloads, a cacheful at a time: float32[payloads, values]."""
    sign1, sign2 = signs
    most = max(1, BATCH * BLOCK // run.elements)
    work, scratch = (np.empty(min(most, len(codes)) * run.elements, np.float32) for _ in range(2))
    for first in range(0, len(codes), most):
        rows = slice(first, first + most)
        count = len(codes[rows])
        flat = work[: count * run.elements]
        blocks = flat.reshape(count * run.blocks, run.width)
        spread_codes(codes[rows].ravel(), bits, blocks)
        unrotate(blocks, sign1[rows].ravel(), sign2[rows].ravel(), scratch)
        np.multiply(blocks, scales[rows].reshape(-1, 1), out=blocks)
        values = flat.reshape(count, run.elements)[:, : run.values]
        # as in ``_Source.decode``: every zero becomes +0
        np.add(values, np.float32(0), out=out[rows])


def _rotate_and_fit(
    blocks: Floats, signs: Signs, *, bits: int, scratch: Floats, wide: Doubles
) -> tuple[Octets, Doubles]:
    """Rotate ``blocks`` in place; return their codes and the unbiased scale of each, 0 of an all-zero block.

    Sums are taken in float64, in ``wide``: exact for whole-numbered blocks, and nothing overflows.
    """
    count, width = blocks.shape
    exact = wide[: blocks.size].reshape(blocks.shape)
    np.copyto(exact, blocks)
    energy = np.matmul(exact[:, np.newaxis, :], exact[:, :, np.newaxis]).reshape(count)
    rotate(blocks, *signs, scratch)
    room = scratch[: blocks.size].reshape(blocks.shape)
    if bits == 1:
        codes = (blocks >= 0).view(np.uint8)
        np.copyto(exact, np.abs(blocks, out=room))
    else:
        # rotating twice multiplies a block's energy by the square of its width
        codes = quantize(blocks, np.sqrt(energy * width), bits, room, exact)
        np.multiply(exact, blocks, out=exact)
    # one product per block here too: a sum must not depend on how many blocks are summed together
    inner = np.matmul(exact[:, np.newaxis, :], np.ones((width, 1))).reshape(count)
    scales = np.zeros(count)
    np.divide(energy, inner, out=scales, where=inner > 0)
    return codes, scales


def _room(layout: TensorLayout) -> Floats:
    """Room for one batch of blocks of any segment of the layout."""
    blocks = min(BATCH, -(-longest_segment(layout) // BLOCK))
    return np.empty(blocks * BLOCK, np.float32)
