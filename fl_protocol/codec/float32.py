"""The codec ``float32``: values as they are, little-endian."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.bounds import check_length, check_values, fitting_vector
from fl_protocol.codec.float_values import widened_all, widened_pieces
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.codec.update_codec import Piece, norm_of_pieces
from fl_protocol.layout import TensorLayout

__all__ = ["Float32"]


@dataclass(frozen=True, slots=True)
class Float32:
    """Lossless; four bytes per parameter."""

    @property
    def spec(self) -> CodecSpec:
        """``float32``."""
        return CodecSpec(name="float32")

    @property
    def unbiased(self) -> bool:
        """True: nothing is lost."""
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
        """Four bytes per element."""
        return 4 * layout.size

    def encode(self, delta: npt.NDArray[np.float32], layout: TensorLayout, seed: bytes) -> bytes:
        """Copy float32[n]; the seed is not used."""
        values = fitting_vector(delta, layout)
        check_values(values, "the delta")
        return values.astype("<f4", copy=False).tobytes()

    def encode_all(
        self, deltas: npt.NDArray[np.float32], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> list[bytes]:
        """Encode one after the other."""
        return [self.encode(delta, layout, seed) for delta, seed in zip(deltas, seeds, strict=True)]

    def check(self, payload: bytes, layout: TensorLayout) -> None:
        """Verify the length and that every value is finite and at most 2^100 in magnitude."""
        check_length(payload, self.largest(layout))
        check_values(np.frombuffer(payload, "<f4"), "the payload")

    def norm(self, payload: bytes, layout: TensorLayout, seed: bytes) -> np.float32:
        """The L2 norm of the update."""
        return norm_of_pieces(self.pieces(payload, layout, seed))

    def expected_inflation(self, layout: TensorLayout) -> float:
        """Exactly 1."""
        return 1.0

    def pieces(self, payload: bytes, layout: TensorLayout, seed: bytes) -> Iterator[Piece]:
        """Copy segment by segment."""
        return widened_pieces(payload, layout, "<f4")

    def check_all(self, payloads: Sequence[bytes], layout: TensorLayout) -> None:
        """Check one after the other."""
        for payload in payloads:
            self.check(payload, layout)

    def decode_all(
        self, payloads: Sequence[bytes], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> npt.NDArray[np.float32]:
        """Copy all payloads; the seeds are not used."""
        return widened_all(payloads, layout, "<f4")
