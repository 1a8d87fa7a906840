"""Segments: the cache-sized stretches of a flat vector that are coded one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

from fl_protocol.layout import TensorLayout

__all__ = ["SEGMENT_ELEMENTS", "Segment", "longest_segment", "segments"]

SEGMENT_ELEMENTS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Elements ``[start, start + size)`` of the flat vector: the ``index``-th stretch of one tensor."""

    tensor: int
    index: int
    start: int
    size: int


def segments(layout: TensorLayout) -> Iterator[Segment]:
    """Cut each tensor into stretches of 65,536 elements, the last one shorter; yield in wire order."""
    for tensor, (spec, first) in enumerate(layout.offsets()):
        for index, offset in enumerate(range(0, spec.size, SEGMENT_ELEMENTS)):
            size = min(SEGMENT_ELEMENTS, spec.size - offset)
            yield Segment(tensor=tensor, index=index, start=first + offset, size=size)


def longest_segment(layout: TensorLayout) -> int:
    """Elements of the longest segment."""
    return min(SEGMENT_ELEMENTS, max(tensor.size for tensor in layout.tensors))
