"""The codec ``float16``: each value rounded to the nearest float16."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.bounds import (
    HIGHEST_FLOAT16,
    check_float16,
    check_length,
    check_values,
    fitting_vector,
)
from fl_protocol.codec.float_values import widened_all, widened_pieces
from fl_protocol.codec.segments import longest_segment, segments
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.codec.update_codec import Piece, blank_payload, norm_of_pieces
from fl_protocol.layout import TensorLayout

__all__ = ["Float16"]


@dataclass(frozen=True, slots=True)
class Float16:
    """Two bytes per parameter; relative error at most 2^-11 from 2^-14 to 65504.

    Below, the error is at most 2^-25; above, values are limited to 65504 in magnitude.
    """

    @property
    def spec(self) -> CodecSpec:
        """``float16``."""
        return CodecSpec(name="float16")

    @property
    def unbiased(self) -> bool:
        """False: the same value is always rounded the same way."""
        return False

    @property
    def exact(self) -> bool:
        """True: the length follows from the layout."""
        return True

    @property
    def feedback(self) -> bool:
        """False: nothing is left out for good."""
        return False

    def largest(self, layout: TensorLayout) -> int:
        """Two bytes per element."""
        return 2 * layout.size

    def encode(self, delta: npt.NDArray[np.float32], layout: TensorLayout, seed: bytes) -> bytes:
        """Limit to the finite range and round to nearest, halves to even; the seed is not used."""
        values = fitting_vector(delta, layout)
        check_values(values, "the delta")
        payload = blank_payload(self.largest(layout))
        payload.seek(0)
        work = np.empty(longest_segment(layout), np.float32)
        for segment in segments(layout):
            part = work[: segment.size]
            stop = segment.start + segment.size
            np.clip(values[segment.start : stop], -HIGHEST_FLOAT16, HIGHEST_FLOAT16, out=part)
            payload.write(part.astype("<f2").data)
        return payload.getvalue()

    def encode_all(
        self, deltas: npt.NDArray[np.float32], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> list[bytes]:
        """Encode one after the other."""
        return [self.encode(delta, layout, seed) for delta, seed in zip(deltas, seeds, strict=True)]

    def check(self, payload: bytes, layout: TensorLayout) -> None:
        """Verify the length and that every value is finite."""
        check_length(payload, self.largest(layout))
        check_float16(np.frombuffer(payload, "<f2"), "the payload")

    def norm(self, payload: bytes, layout: TensorLayout, seed: bytes) -> np.float32:
        """The L2 norm of the decoded update."""
        return norm_of_pieces(self.pieces(payload, layout, seed))

    def expected_inflation(self, layout: TensorLayout) -> float:
        """About 1: rounding hardly changes the norm."""
        return 1.0

    def pieces(self, payload: bytes, layout: TensorLayout, seed: bytes) -> Iterator[Piece]:
        """Widen segment by segment; the seed is not used."""
        return widened_pieces(payload, layout, "<f2")

    def check_all(self, payloads: Sequence[bytes], layout: TensorLayout) -> None:
        """Check one after the other."""
        for payload in payloads:
            self.check(payload, layout)

    def decode_all(
        self, payloads: Sequence[bytes], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> npt.NDArray[np.float32]:
        """Widen all payloads; the seeds are not used."""
        return widened_all(payloads, layout, "<f2")
