"""Claims: the metrics of one update as a user's rule sees them, and whose fault it is where it fails.

A rule weighs by what devices claim. What nobody in the fleet reports is the rule's misspelling; what this
device alone lacks, or gives as no number or below 0, is the device's: sums and counts never are.
"""

import math
from collections.abc import Container, Iterable, Iterator, Mapping

__all__ = ["Claims"]


class Claims(Mapping[str, float]):
    """``metrics``, which remembers what it was asked for; ``reported`` names what the fleet reports."""

    def __init__(self, metrics: Mapping[str, float], reported: Container[str]) -> None:
        self._metrics = metrics
        self._reported = reported
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> float:
        self._asked.add(name)
        return self._metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        return len(self._metrics)

    @property
    def answered(self) -> frozenset[str]:
        """The names that were asked for, and are there."""
        return frozenset(self._asked & self._metrics.keys())

    def lacks(self, error: KeyError) -> bool:
        """Whether ``error`` comes of a metric asked for that others report and this update does not."""
        name = error.args[0] if error.args else None
        return name in self._asked and name not in self._metrics and name in self._reported

    def unsound(self) -> str:
        """What was asked for and is no finite number from 0 on, or a count of none, in words; empty if there
        is nothing such."""
        wrong = [
            name
            for name in sorted(self.answered)
            if not _sound(value := self._metrics[name]) or (value == 0 and name.endswith(".count"))
        ]
        return self._in_words(wrong)

    def __str__(self) -> str:
        """What was asked for and is there, in words."""
        return self._in_words(sorted(self.answered))

    def _in_words(self, names: Iterable[str]) -> str:
        return ", ".join(f"{name} is {self._metrics[name]}" for name in names)


def _sound(value: float) -> bool:
    return math.isfinite(value) and value >= 0
