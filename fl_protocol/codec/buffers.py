"""Buffers: how a codec of weights carries running statistics too, as float16 behind the weights.

Whatever the codec does to the weights (mask, rotate, quantize) it does not do to buffers: a mean or a
variance that is off by a random sign is of no use, and there are few of them.
"""

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
from fl_protocol.codec.segments import SEGMENT_ELEMENTS
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.codec.update_codec import Piece, UpdateCodec
from fl_protocol.errors import CodecError
from fl_protocol.layout import TensorLayout

__all__ = ["HIGHEST_BUFFER", "WithBuffers"]

HIGHEST_BUFFER = HIGHEST_FLOAT16
"""The largest finite float16: deltas of buffers are limited to it in magnitude."""

_WIDTH = 2


@dataclass(frozen=True, slots=True)
class WithBuffers:
    """An :class:`UpdateCodec` for any layout: ``of_weights`` codes the weights, buffers follow as float16."""

    of_weights: UpdateCodec

    @property
    def spec(self) -> CodecSpec:
        """That of the weights' codec."""
        return self.of_weights.spec

    @property
    def unbiased(self) -> bool:
        """That of the weights: buffers are rounded to the nearest."""
        return self.of_weights.unbiased

    @property
    def exact(self) -> bool:
        """That of the weights' codec."""
        return self.of_weights.exact

    @property
    def feedback(self) -> bool:
        """That of the weights' codec: nothing of buffers is left out."""
        return self.of_weights.feedback

    def largest(self, layout: TensorLayout) -> int:
        """The weights' payload, then two bytes per element of a buffer."""
        return self.of_weights.largest(layout.weights) + _WIDTH * layout.buffer_size

    def encode(self, delta: npt.NDArray[np.float32], layout: TensorLayout, seed: bytes) -> bytes:
        """Encode the weights, and round buffers to the nearest float16 within its finite range."""
        vector = fitting_vector(delta, layout)
        payload = self.of_weights.encode(vector[: layout.weight_size], layout.weights, seed)
        return payload + _rounded(vector, layout) if layout.buffer_size else payload

    def encode_all(
        self, deltas: npt.NDArray[np.float32], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> list[bytes]:
        """The weights of all deltas, and behind each the buffers of its own."""
        payloads = self.of_weights.encode_all(deltas[:, : layout.weight_size], layout.weights, seeds)
        if not layout.buffer_size:
            return payloads
        return [
            payload + _rounded(fitting_vector(delta, layout), layout)
            for payload, delta in zip(payloads, deltas, strict=True)
        ]

    def check(self, payload: bytes, layout: TensorLayout) -> None:
        """Verify the length, what the weights' codec verifies, and that every float16 is finite."""
        if not layout.buffer_size:
            self.of_weights.check(payload, layout)
            return
        if self.exact:
            check_length(payload, self.largest(layout))
        elif len(payload) < _WIDTH * layout.buffer_size:
            raise CodecError(f"the payload has {len(payload)} bytes, too few for the buffers alone")
        self.of_weights.check(self._weights(payload, layout), layout.weights)
        check_float16(_tail(payload, layout), "the delta of the buffers")

    def norm(self, payload: bytes, layout: TensorLayout, seed: bytes) -> np.float32:
        """The L2 norm of the weights alone: buffers have units of their own."""
        return self.of_weights.norm(self._weights(payload, layout), layout.weights, seed)

    def expected_inflation(self, layout: TensorLayout) -> float:
        """That of the weights."""
        return self.of_weights.expected_inflation(layout.weights)

    def pieces(self, payload: bytes, layout: TensorLayout, seed: bytes) -> Iterator[Piece]:
        """The pieces of the weights, then those of the buffers; no piece holds both."""
        yield from self.of_weights.pieces(self._weights(payload, layout), layout.weights, seed)
        tail = _tail(payload, layout)
        for start in range(0, layout.buffer_size, SEGMENT_ELEMENTS):
            values = tail[start : start + SEGMENT_ELEMENTS].astype(np.float32)
            yield layout.weight_size + start, values

    def check_all(self, payloads: Sequence[bytes], layout: TensorLayout) -> None:
        """All at once where there are only weights."""
        if not layout.buffer_size:
            self.of_weights.check_all(payloads, layout)
            return
        for payload in payloads:
            self.check(payload, layout)

    def decode_all(
        self, payloads: Sequence[bytes], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> npt.NDArray[np.float32]:
        """The weights of all payloads, and their buffers behind them."""
        if not layout.buffer_size:
            return self.of_weights.decode_all(payloads, layout, seeds)
        weights = [self._weights(payload, layout) for payload in payloads]
        buffers = np.stack([_tail(payload, layout) for payload in payloads]).astype(np.float32)
        return np.hstack([self.of_weights.decode_all(weights, layout.weights, seeds), buffers])

    def _weights(self, payload: bytes, layout: TensorLayout) -> bytes:
        """The payload of the weights; not copied where it is all."""
        return payload[: len(payload) - _WIDTH * layout.buffer_size]


def _rounded(vector: npt.NDArray[np.float32], layout: TensorLayout) -> bytes:
    """The buffers of a delta as they travel."""
    buffers = vector[layout.weight_size :]
    check_values(buffers, "the delta of the buffers")
    return np.clip(buffers, -HIGHEST_BUFFER, HIGHEST_BUFFER).astype("<f2").tobytes()


def _tail(payload: bytes, layout: TensorLayout) -> npt.NDArray[np.float16]:
    """The deltas of the buffers, in wire order."""
    count = layout.buffer_size
    return np.frombuffer(payload, "<f2", count, offset=len(payload) - _WIDTH * count)
