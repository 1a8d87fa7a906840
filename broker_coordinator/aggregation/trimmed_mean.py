"""The coordinate-wise trimmed mean: of each parameter the highest and lowest values are left out.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates
(2018). It stands a share of attackers below ``trim``. Every update counts alike.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.aggregator import UpdateContext
from broker_coordinator.aggregation.held_updates import HeldUpdates
from fl_protocol.errors import ConfigError
from fl_protocol.update import UpdateHeader

__all__ = ["TrimmedMean", "trimmed_count"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedMean:
    """``trim`` in [0, 0.5) is the share left out on each side, rounded down to whole updates.

    Raises:
        ConfigError: it is not in that range.
    """

    trim: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ConfigError(f"a trimmed mean with trim = {self.trim}: it must be at least 0 and below 0.5")

    @property
    def holds_updates(self) -> bool:
        """It needs them all."""
        return True

    def weigh(self, update: UpdateHeader, context: UpdateContext) -> float:
        """One."""
        return 1.0

    def combine(self, held: HeldUpdates) -> NDArray[np.float32]:
        """float32[held.size]; zeros of no updates."""
        mean = np.zeros(held.size, np.float32)
        out = trimmed_count(self.trim, len(held))
        kept = range(out, len(held) - out)
        for start, values in held.columns():
            values.sort(axis=0)
            part = mean[start : start + values.shape[1]]
            for row in kept:
                np.add(part, values[row], out=part)
            np.divide(part, np.float32(len(kept)), out=part)
        return mean


def trimmed_count(trim: float, updates: int) -> int:
    """How many values are left out on each side."""
    return int(trim * updates + 1e-9)
