"""The codec ``int8``: one scale per tensor, stochastic rounding, so that the mean error is zero.

Alistarh et al.: QSGD (NeurIPS 2017), with the maximum norm and 127 levels on each side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.bounds import (
    bounded_scales,
    check_codes,
    check_length,
    check_scales,
    check_values,
    fitting_vector,
)
from fl_protocol.codec.segments import longest_segment, segments
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.codec.streams import ROUND, Stream
from fl_protocol.codec.update_codec import Piece, blank_payload, norm_of_pieces
from fl_protocol.layout import TensorLayout

__all__ = ["Int8"]

_LEVELS = 127


@dataclass(frozen=True, slots=True)
class Int8:
    """Unbiased; a byte per parameter and four per tensor."""

    @property
    def spec(self) -> CodecSpec:
        """``int8``."""
        return CodecSpec(name="int8")

    @property
    def unbiased(self) -> bool:
        """True: rounding is at random."""
        return True

    @property
    def exact(self) -> bool:
        """True: the length follows from the layout."""
        return True

    @property
    def feedback(self) -> bool:
        """False: nothing is left out for good."""
        return False

    def largest(self, layout: TensorLayout) -> int:
        """Four bytes per tensor, then one per element."""
        return 4 * len(layout.tensors) + layout.size

    def encode(self, delta: npt.NDArray[np.float32], layout: TensorLayout, seed: bytes) -> bytes:
        """Round each value up or down at random, so that its expectation is the value."""
        values = fitting_vector(delta, layout)
        check_values(values, "the delta")
        scales = _tensor_scales(values, layout)
        stream = Stream(seed, ROUND)
        work = np.empty(longest_segment(layout), np.float32)
        payload = blank_payload(self.largest(layout))
        payload.seek(0)
        payload.write(scales.data)
        for segment in segments(layout):
            part = work[: segment.size]
            dither = _dither(stream.octets(2 * segment.size))
            scale = scales[segment.tensor]
            if scale == 0:
                part.fill(0)
            else:
                np.divide(values[segment.start : segment.start + segment.size], scale, out=part)
                np.add(part, dither, out=part)
                np.floor(part, out=part)
                np.clip(part, -_LEVELS, _LEVELS, out=part)
            payload.write(part.astype(np.int8).data)
        return payload.getvalue()

    def encode_all(
        self, deltas: npt.NDArray[np.float32], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> list[bytes]:
        """Encode one after the other."""
        return [self.encode(delta, layout, seed) for delta, seed in zip(deltas, seeds, strict=True)]

    def check(self, payload: bytes, layout: TensorLayout) -> None:
        """Verify the length, the scales, and that no code is -128."""
        check_length(payload, self.largest(layout))
        scales, codes = _parts(payload, layout)
        check_scales(scales)
        check_codes(codes)

    def norm(self, payload: bytes, layout: TensorLayout, seed: bytes) -> np.float32:
        """The L2 norm of the decoded update."""
        return norm_of_pieces(self.pieces(payload, layout, seed))

    def expected_inflation(self, layout: TensorLayout) -> float:
        """About 1: the rounding noise is small against the update."""
        return 1.0

    def pieces(self, payload: bytes, layout: TensorLayout, seed: bytes) -> Iterator[Piece]:
        """Multiply codes and scale, segment by segment; the seed is not used."""
        scales, codes = _parts(payload, layout)
        piece = np.empty(longest_segment(layout), np.float32)
        for segment in segments(layout):
            values = piece[: segment.size]
            np.copyto(values, codes[segment.start : segment.start + segment.size])
            np.multiply(values, scales[segment.tensor], out=values)
            yield segment.start, values

    def check_all(self, payloads: Sequence[bytes], layout: TensorLayout) -> None:
        """Check one after the other."""
        for payload in payloads:
            self.check(payload, layout)

    def decode_all(
        self, payloads: Sequence[bytes], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> npt.NDArray[np.float32]:
        """Multiply the codes of all payloads and their scales, tensor by tensor; the seeds are not used."""
        received = np.frombuffer(b"".join(payloads), np.int8).reshape(len(payloads), self.largest(layout))
        count = len(layout.tensors)
        scales = np.ascontiguousarray(received[:, : 4 * count]).view("<f4")
        decoded = received[:, 4 * count :].astype(np.float32)
        for tensor, (spec, start) in enumerate(layout.offsets()):
            part = decoded[:, start : start + spec.size]
            np.multiply(part, scales[:, tensor : tensor + 1], out=part)
        return decoded


def _parts(payload: bytes, layout: TensorLayout) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    count = len(layout.tensors)
    return np.frombuffer(payload, "<f4", count), np.frombuffer(payload, np.int8, offset=4 * count)


def _tensor_scales(values: npt.NDArray[np.float32], layout: TensorLayout) -> npt.NDArray[np.float32]:
    """The largest magnitude of each tensor, over 127."""
    peaks = []
    for tensor, start in layout.offsets():
        part = values[start : start + tensor.size]
        peaks.append(max(float(part.max()), -float(part.min())))
    return bounded_scales(np.array(peaks) / _LEVELS)


def _dither(octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Odd multiples of 2^-16 in (0, 1), one per two octets.

    They keep 2^-16 from both ends, more than a division can round, so that whole numbers stay whole.
    """
    odd = np.bitwise_or(octets.view("<u2"), np.uint16(1))
    dither: npt.NDArray[np.float32] = np.multiply(odd, np.float32(2.0**-16), dtype=np.float32)
    return dither
