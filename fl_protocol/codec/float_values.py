"""What the codecs of plain floats share: a payload that is an array, widened as it is read."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.segments import longest_segment, segments
from fl_protocol.codec.update_codec import Piece
from fl_protocol.layout import TensorLayout

__all__ = ["widened_all", "widened_pieces"]


def widened_pieces(payload: bytes, layout: TensorLayout, dtype: str) -> Iterator[Piece]:
    """``payload`` as ``dtype``[layout.size], segment by segment as float32."""
    encoded = np.frombuffer(payload, dtype)
    piece = np.empty(longest_segment(layout), np.float32)
    for segment in segments(layout):
        values = piece[: segment.size]
        np.copyto(values, encoded[segment.start : segment.start + segment.size])
        yield segment.start, values


def widened_all(payloads: Sequence[bytes], layout: TensorLayout, dtype: str) -> npt.NDArray[np.float32]:
    """All payloads at once: float32[len(payloads), layout.size]."""
    values = np.frombuffer(b"".join(payloads), dtype).reshape(len(payloads), layout.size)
    return values.astype(np.float32)
