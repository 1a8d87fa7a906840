"""The contract of update codecs, and what follows from it for all of them."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.segments import SEGMENT_ELEMENTS
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.layout import TensorLayout

__all__ = ["Piece", "UpdateCodec", "blank_payload", "decode", "joined", "norm_of_pieces", "whole_pieces"]

Piece = tuple[int, npt.NDArray[np.float32]]
"""``(start, values)``: elements ``[start, start + len(values))`` of the flat vector."""


class UpdateCodec(Protocol):
    """Turns the delta of a model update into payload bytes and back.

    Decoding gives the same bits on every machine; encoding need not. Codecs hold no state between updates:
    where one asks for ``feedback``, its caller keeps what a payload leaves out.
    """

    @property
    def spec(self) -> CodecSpec:
        """The canonical specification: :func:`codec_for` of it gives an equal codec."""

    @property
    def unbiased(self) -> bool:
        """Whether the expectation of the decoded update, over seeds, is the delta."""

    @property
    def exact(self) -> bool:
        """Whether every payload has the length ``largest``; else the length depends on its content."""

    @property
    def feedback(self) -> bool:
        """Whether the delta less what was decoded is to be added to the device's next delta."""

    def largest(self, layout: TensorLayout) -> int:
        """The most bytes that a payload may have."""

    def encode(self, delta: npt.NDArray[np.float32], layout: TensorLayout, seed: bytes) -> bytes:
        """Encode float32[n]; ``seed`` is the update's :func:`codec_seed`.

        Raises:
            LayoutError: ``delta`` is not float32[layout.size].
            CodecError: a value is NaN, infinite, or above 2^100 in magnitude.
        """

    def encode_all(
        self, deltas: npt.NDArray[np.float32], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> list[bytes]:
        """Encode several deltas at once, float32[deltas, n]: what :meth:`encode` makes of each. For models so
        small that a call costs more than the numbers.

        Raises:
            LayoutError, CodecError: as :meth:`encode`, for any of them.
        """

    def check(self, payload: bytes, layout: TensorLayout) -> None:
        """Verify that ``payload`` decodes, to finite values.

        Raises:
            CodecError: wrong length, or a number out of bounds. Never anything else.
        """

    def norm(self, payload: bytes, layout: TensorLayout, seed: bytes) -> np.float32:
        """The L2 norm of the decoded update, within 1e-5; ``payload`` has passed :meth:`check`.

        Not bit-exact between machines: compute once and keep.
        """

    def expected_inflation(self, layout: TensorLayout) -> float:
        """About how many times the decoded update's norm exceeds the delta's; at least 1."""

    def pieces(self, payload: bytes, layout: TensorLayout, seed: bytes) -> Iterator[Piece]:
        """Decode in wire order, covering ``[0, n)`` exactly once, at most 65,536 elements at a time.

        ``payload`` has passed :meth:`check`. Each array is valid until the next piece is asked for,
        and its owner may write to it.
        """

    def check_all(self, payloads: Sequence[bytes], layout: TensorLayout) -> None:
        """Verify several payloads at once.

        Raises:
            CodecError: one of them does not decode; :meth:`check` tells which.
        """

    def decode_all(
        self, payloads: Sequence[bytes], layout: TensorLayout, seeds: Sequence[bytes]
    ) -> npt.NDArray[np.float32]:
        """Decode several payloads, that have passed :meth:`check`, at once: float32[payloads, n], the same
        bits as their pieces. For models so small that a call costs more than the numbers."""


def decode(codec: UpdateCodec, payload: bytes, layout: TensorLayout, seed: bytes) -> npt.NDArray[np.float32]:
    """Check and decode a whole payload: float32[n].

    Raises:
        CodecError: the payload does not pass the codec's check.
    """
    codec.check(payload, layout)
    decoded = np.empty(layout.size, np.float32)
    for start, values in codec.pieces(payload, layout, seed):
        decoded[start : start + len(values)] = values
    return decoded


def joined(pieces: Iterable[Piece], layout: TensorLayout) -> Iterator[Piece]:
    """The pieces of one update; those of a model of at most 65,536 elements put together, one of its weights
    and one of its buffers: there a call costs more than the numbers."""
    if layout.size > SEGMENT_ELEMENTS:
        yield from pieces
        return
    whole = np.empty(layout.size, np.float32)
    for start, values in pieces:
        whole[start : start + len(values)] = values
    yield from whole_pieces(whole, layout)


def whole_pieces(vector: npt.NDArray[np.float32], layout: TensorLayout) -> Iterator[Piece]:
    """A decoded update as ``joined`` gives it: float32[n], not copied."""
    yield 0, vector[: layout.weight_size]
    if layout.buffer_size:
        yield layout.weight_size, vector[layout.weight_size :]


def norm_of_pieces(pieces: Iterable[Piece]) -> np.float32:
    """The L2 norm of what ``pieces`` make up; squares are summed in float64."""
    energy = sum(float(np.einsum("i,i->", values, values, dtype=np.float64)) for _, values in pieces)
    return np.float32(math.sqrt(energy))


def blank_payload(size: int) -> io.BytesIO:
    """A stream of ``size`` (>= 1) bytes to fill; its ``getvalue`` hands the bytes out without a copy."""
    payload = io.BytesIO()
    payload.seek(size - 1)
    payload.write(b"\0")
    return payload
