"""Krum: the update that lies closest to its neighbours is the step; multi-Krum takes the mean of several.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent (2017). It stands ``attackers`` = f of n updates where n >= 2 f + 3. Distances cost n^2 models.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.aggregator import UpdateContext
from broker_coordinator.aggregation.held_updates import HeldUpdates
from fl_protocol.errors import ConfigError
from fl_protocol.update import UpdateHeader

__all__ = ["Krum", "least_updates"]

_BLOCK = 1 << 12
"""Elements whose squares are added up at once: of 100 updates 3 MiB of float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Krum:
    """An update's score is the sum of the squared distances to its n - f - 2 nearest; the ``chosen`` updates
    of the lowest scores, the earlier one of equals, are averaged: n - f of them at the most, for a version
    that a deadline closed may have fewer than were counted on.

    Raises:
        ConfigError: ``attackers`` is negative, or ``chosen`` below 1.
    """

    attackers: int = 1
    chosen: int = 1

    def __post_init__(self) -> None:
        if self.attackers < 0 or self.chosen < 1:
            raise ConfigError(
                f"krum with attackers = {self.attackers} and chosen = {self.chosen}:"
                " they must be at least 0 and 1"
            )

    @property
    def holds_updates(self) -> bool:
        """It needs them all."""
        return True

    def weigh(self, update: UpdateHeader, context: UpdateContext) -> float:
        """One."""
        return 1.0

    def combine(self, held: HeldUpdates) -> NDArray[np.float32]:
        """float32[held.size]; zeros of no updates."""
        step = np.zeros(held.size, np.float32)
        taken = self._taken(held)
        for start, values in held.columns():
            part = step[start : start + values.shape[1]]
            for row in taken:
                np.add(part, values[row], out=part)
            np.divide(part, np.float32(len(taken)), out=part)
        return step

    def _taken(self, held: HeldUpdates) -> list[int]:
        """The places of the chosen updates, in the order in which they were accepted."""
        count = len(held)
        distances = squared_distances(held)
        attackers = max(0, min(self.attackers, (count - 3) // 2))
        neighbours = max(1, count - attackers - 2)
        scores = []
        for row in range(count):
            others = sorted(float(distances[row, other]) for other in range(count) if other != row)
            scores.append(math.fsum(others[:neighbours]))
        best = sorted(range(count), key=lambda row: (scores[row], row))
        return sorted(best[: min(self.chosen, max(1, count - attackers))])


def least_updates(attackers: int) -> int:
    """Updates that a version must have for the promise to hold: 2 f + 3."""
    return 2 * attackers + 3


def squared_distances(held: HeldUpdates) -> NDArray[np.float64]:
    """float64[n, n]. Squares are added by halves, element by element: the same bits on every machine,
    whatever order a library's own sum has."""
    count = len(held)
    distances = np.zeros((count, count), np.float64)
    for _, values in held.columns():
        for start in range(0, values.shape[1], _BLOCK):
            part = values[:, start : start + _BLOCK].astype(np.float64)
            for row in range(count - 1):
                found = _row_sums(np.square(part[row + 1 :] - part[row]))
                distances[row, row + 1 :] += found
                distances[row + 1 :, row] += found
    return distances


def _row_sums(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        folded = squares[:, :half] + squares[:, half : 2 * half]
        if squares.shape[1] % 2:
            folded[:, 0] += squares[:, -1]
        squares = folded
    return squares[:, 0]
