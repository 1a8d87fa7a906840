"""Aggregators: how updates become one step.

An aggregator weighs each update once, when it is accepted; the weight is journalled. Values then come
decoded, in pieces, already times the update's scale (staleness weight and clip factor). So the mean is
``sum(n s d) / sum(n)``: the denominator does not carry the staleness weight s. Dividing by ``sum(n s)``
would take away the damping that keeps an asynchronous step stable.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.held_updates import HeldUpdates
from fl_protocol.update import UpdateHeader

__all__ = ["Aggregator", "HoldingAggregator", "Mean", "UpdateContext"]

State: TypeAlias = dict[str, Any]
"""An aggregator's own arrays and float32 scalars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateContext:
    """What is known of an update besides its header when it is weighed.

    ``staleness`` in versions; ``norm`` the L2 norm of the decoded values over the codec's expected
    inflation.
    """

    device: str
    staleness: int
    norm: np.float32


class Aggregator(Protocol):
    """How the weights of updates become one step; holds no state of its own. Buffers never come here: see
    ``running_statistics``. ``holds_updates`` is False.
    """

    @property
    def holds_updates(self) -> bool:
        """Whether updates must be kept until the version closes: no."""
        ...

    def weigh(self, update: UpdateHeader, context: UpdateContext) -> float:
        """The update's weight: finite, not negative. ``update.num_examples`` is clamped already."""
        ...

    def init(self, size: int) -> State:
        """The state of a version with no update in it yet, for float32[size]."""
        ...

    def accumulate(self, state: State, start: int, values: NDArray[np.float32], weight: np.float32) -> None:
        """Add one piece, the elements from ``start`` on; the pieces of an update come in order, the first
        has ``start`` 0. ``values`` is scratch: it may be overwritten, and must not be kept."""
        ...

    def finalize(self, state: State) -> NDArray[np.float32]:
        """The aggregate, float32[size]; may give away the state's arrays."""
        ...


class HoldingAggregator(Protocol):
    """A rule that needs all updates at once, as a median does: ``holds_updates`` is True."""

    @property
    def holds_updates(self) -> bool:
        """Whether updates must be kept until the version closes: yes."""
        ...

    def weigh(self, update: UpdateHeader, context: UpdateContext) -> float:
        """As an ``Aggregator`` weighs."""
        ...

    def combine(self, held: HeldUpdates) -> NDArray[np.float32]:
        """The aggregate, float32[held.size]; values are already times their update's scale."""
        ...


class Mean:
    """The mean over examples: ``sum(n s d) / sum(n)``, n = distinct examples times steps done / planned.

    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (2017), with
    the buffer of Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation (2022).
    """

    holds_updates = False

    def weigh(self, update: UpdateHeader, context: UpdateContext) -> float:
        """Examples times the share of the planned steps that were done."""
        return update.num_examples * (update.steps_done / update.steps_planned)

    def init(self, size: int) -> State:
        """Zeros."""
        return {"total": np.zeros(size, np.float32), "weight": np.float32(0)}

    def accumulate(self, state: State, start: int, values: NDArray[np.float32], weight: np.float32) -> None:
        """Add ``weight * values``, element by element."""
        total = state["total"][start : start + len(values)]
        np.multiply(values, weight, out=values)
        np.add(total, values, out=total)
        if start == 0:
            state["weight"] = np.float32(state["weight"] + weight)

    def finalize(self, state: State) -> NDArray[np.float32]:
        """Divide by the sum of weights; zeros where that is 0."""
        total: NDArray[np.float32] = state["total"]
        if state["weight"] > 0:
            np.divide(total, state["weight"], out=total)
        return total
