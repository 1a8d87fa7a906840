"""Sets of byte ranges: which parts of a payload are here, and which are missing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fl_protocol.errors import MessageError

__all__ = ["MAX_RANGES", "ByteRanges"]

MAX_RANGES = 256
"""A receipt lists at most so many ranges; what is beyond follows in the next one."""


@dataclass(frozen=True, slots=True)
class ByteRanges:
    """Disjoint, sorted, non-adjacent half-open ranges ``[start, end)`` in bytes."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> "ByteRanges":
        """Normalise any ranges: sort, drop the empty, merge what touches."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(pair for pair in ranges if pair[0] < pair[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return cls(tuple(merged))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)

    @property
    def bytes(self) -> int:
        """Bytes covered."""
        return sum(end - start for start, end in self.ranges)

    def add(self, start: int, end: int) -> "ByteRanges":
        """These ranges and ``[start, end)``."""
        return ByteRanges.of([*self.ranges, (start, end)])

    def missing(self, size: int) -> "ByteRanges":
        """What of ``[0, size)`` is not covered."""
        gaps, at = [], 0
        for start, end in self.ranges:
            gaps.append((at, min(start, size)))
            at = max(at, end)
        return ByteRanges.of([*gaps, (at, size)])

    def first(self, most: int) -> "ByteRanges":
        """The first ``most`` bytes that are covered."""
        taken, left = [], most
        for start, end in self.ranges:
            taken.append((start, min(end, start + left)))
            left -= taken[-1][1] - start
            if left <= 0:
                break
        return ByteRanges.of(taken)

    def to_body(self) -> list[int]:
        """The flat list ``[start, end, start, end, ...]``, at most ``MAX_RANGES`` ranges."""
        return [bound for pair in self.ranges[:MAX_RANGES] for bound in pair]

    @classmethod
    def from_body(cls, flat: Sequence[object]) -> "ByteRanges":
        """Read a flat list; raises MessageError unless it is even, sorted and disjoint."""
        bounds = [bound for bound in flat if type(bound) is int and 0 <= bound < 1 << 53]
        if len(bounds) != len(flat) or len(flat) % 2 or len(flat) > 2 * MAX_RANGES:
            raise MessageError("byte ranges are an even list of byte offsets")
        if any(left >= right for left, right in pairwise(bounds)):
            raise MessageError("byte ranges must be sorted, disjoint and not empty")
        return cls(tuple(zip(bounds[::2], bounds[1::2], strict=True)))
