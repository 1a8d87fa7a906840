"""Server optimizers: how the aggregate moves the master weights.

Reddi et al., Adaptive Federated Optimization (2021): the aggregate is a pseudo-gradient (pointing the way
the clients went), and a server learning rate scales it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ServerOptimizer", "Sgd", "Slots"]

Slots: TypeAlias = Mapping[str, NDArray[np.float32]]
"""An optimizer's state: float32[n] by name, zeros before the first version."""


class ServerOptimizer(Protocol):
    """How the aggregate moves the master weights: element-wise, every scalar float32, so that a replay
    gives the same bits on every machine."""

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of its state vectors, sorted."""
        ...

    def step(
        self, master: NDArray[np.float32], slots: Slots, aggregate: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Slots]:
        """The next master weights (a new array) and slots; ``aggregate`` is scratch."""
        ...


@dataclass(frozen=True, slots=True)
class Sgd:
    """``master + lr * aggregate``."""

    lr: float = 1.0

    @property
    def slots(self) -> tuple[str, ...]:
        """None."""
        return ()

    def step(
        self, master: NDArray[np.float32], slots: Slots, aggregate: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], Slots]:
        """One step."""
        np.multiply(aggregate, np.float32(self.lr), out=aggregate)
        return np.add(master, aggregate), {}
