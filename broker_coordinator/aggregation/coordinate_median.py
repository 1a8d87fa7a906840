"""The coordinate-wise median: each parameter moves by the median of what the updates say.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates
(2018). Up to half of the updates may say anything. Every update counts alike: what a device claims of its
examples buys it nothing.
"""

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.aggregator import UpdateContext
from broker_coordinator.aggregation.held_updates import HeldUpdates
from fl_protocol.update import UpdateHeader

__all__ = ["CoordinateMedian"]


class CoordinateMedian:
    """The median of each element; of an even number half the sum of the two in the middle."""

    holds_updates = True

    def weigh(self, update: UpdateHeader, context: UpdateContext) -> float:
        """One."""
        return 1.0

    def combine(self, held: HeldUpdates) -> NDArray[np.float32]:
        """float32[held.size]; zeros of no updates."""
        median = np.zeros(held.size, np.float32)
        count = len(held)
        for start, values in held.columns():
            values.sort(axis=0)
            part = median[start : start + values.shape[1]]
            np.add(values[(count - 1) // 2], values[count // 2], out=part)
            np.multiply(part, np.float32(0.5), out=part)
        return median
