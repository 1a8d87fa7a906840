"""Blocks: how the kept values of a segment are cut for rotation, and where they lie in a payload."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from fl_protocol.codec.hadamard import BLOCK, SMALLEST_BLOCK
from fl_protocol.codec.mask import kept_count
from fl_protocol.codec.segments import Segment, segments
from fl_protocol.layout import TensorLayout

__all__ = ["BATCH", "Run", "Span", "payload_parts", "spans"]

BATCH = 64
"""Blocks rotated at once, those of a whole segment: with their scratch half a megabyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """``blocks`` consecutive blocks of one ``width``, from the ``first``-th kept value of a segment on.

    They hold ``values`` kept values; where that is fewer than their elements, zeros pad the last block.
    """

    first: int
    values: int
    blocks: int
    width: int

    @property
    def elements(self) -> int:
        """Elements with the padding, and so code bits."""
        return self.blocks * self.width

    @property
    def octets(self) -> slice:
        """Where its bits lie in the segment's codes, and in the segment's sign streams."""
        return slice(self.first // 8, (self.first + self.elements) // 8)

    def scales_of(self, span: "Span") -> slice:
        """Where its scales lie in the payload of its segment's ``span``."""
        start = span.scale + self.first // BLOCK
        return slice(start, start + self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What a payload says of one segment: ``kept`` values, in whole blocks of 1024 and one tail.

    ``tail`` is the tail block's width (0: none). Its scales start at scale number ``scale`` of the
    payload, its codes at octet ``code`` after the scales.
    """

    segment: Segment
    kept: int
    tail: int
    scale: int
    code: int

    @property
    def blocks(self) -> int:
        """Number of blocks, the tail included."""
        return self.kept // BLOCK + (self.tail > 0)

    @property
    def octets(self) -> int:
        """Number of code octets."""
        return (self.kept // BLOCK * BLOCK + self.tail) // 8

    def runs(self) -> Iterator[Run]:
        """Yield its blocks in wire order, at most ``BATCH`` at once."""
        whole = self.kept // BLOCK
        for block in range(0, whole, BATCH):
            count = min(BATCH, whole - block)
            yield Run(first=block * BLOCK, values=count * BLOCK, blocks=count, width=BLOCK)
        if self.tail:
            yield Run(first=whole * BLOCK, values=self.kept % BLOCK, blocks=1, width=self.tail)


@lru_cache(maxsize=8)
def spans(layout: TensorLayout, keep: float) -> tuple[Span, ...]:
    """The spans of a payload in wire order; ``keep`` in (0, 1] is the share of values kept.

    Kept for the last layouts: for small models to find them costs more than to decode what they hold.
    """
    found = []
    scale = code = 0
    for segment in segments(layout):
        kept = kept_count(segment.size, keep)
        span = Span(segment=segment, kept=kept, tail=_tail_width(kept % BLOCK), scale=scale, code=code)
        found.append(span)
        scale += span.blocks
        code += span.octets
    return tuple(found)


def payload_parts(layout: TensorLayout, keep: float) -> tuple[int, int]:
    """The number of scales and of code octets of a payload."""
    last = spans(layout, keep)[-1]
    return last.scale + last.blocks, last.code + last.octets


def _tail_width(values: int) -> int:
    """The next power of two, and at least 64: in smaller blocks the rotation is not random enough."""
    return max(SMALLEST_BLOCK, 1 << (values - 1).bit_length()) if values else 0
