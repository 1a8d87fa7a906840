"""Server optimizers with a memory: momentum, Adagrad, Adam and Yogi.

Reddi et al., Adaptive Federated Optimization (2021), algorithm 2, whose names these are; momentum as there
is an exponential mean, so that it does not lengthen the step. There is no bias correction, as in the paper;
slots begin at zero, and ``tau`` keeps the first divisions from amplifying noise. Every operation is one
that IEEE 754 rounds correctly (the square root included): the same bits everywhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.server_optimizer import Slots
from fl_protocol.errors import ConfigError

__all__ = ["Adagrad", "Adam", "Momentum", "Yogi"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Momentum:
    """``m = beta1 m + (1 - beta1) d``, then ``master + lr m``."""

    lr: float = 1.0
    beta1: float = 0.9

    def __post_init__(self) -> None:
        _check(beta1=self.beta1)

    @property
    def slots(self) -> tuple[str, ...]:
        """``m``."""
        return ("m",)

    def step(self, master: Floats, slots: Slots, aggregate: Floats) -> tuple[Floats, Slots]:
        """One step."""
        mean = _mixed(slots["m"], aggregate, self.beta1)
        return np.add(master, np.multiply(mean, np.float32(self.lr))), {"m": mean}


@dataclass(frozen=True, slots=True)
class Adagrad:
    """``v = v + d^2``, then ``master + lr m / (sqrt(v) + tau)`` with m as in ``Momentum``."""

    lr: float = 0.05
    beta1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(beta1=self.beta1)
        _check_tau(self.tau)

    @property
    def slots(self) -> tuple[str, ...]:
        """``m`` and ``v``."""
        return ("m", "v")

    def step(self, master: Floats, slots: Slots, aggregate: Floats) -> tuple[Floats, Slots]:
        """One step."""
        mean = _mixed(slots["m"], aggregate, self.beta1)
        energy = np.add(slots["v"], np.multiply(aggregate, aggregate))
        return _moved(master, mean, energy, self.lr, self.tau), {"m": mean, "v": energy}


@dataclass(frozen=True, slots=True)
class Adam:
    """``v = beta2 v + (1 - beta2) d^2``, then as ``Adagrad``."""

    lr: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(beta1=self.beta1, beta2=self.beta2)
        _check_tau(self.tau)

    @property
    def slots(self) -> tuple[str, ...]:
        """``m`` and ``v``."""
        return ("m", "v")

    def step(self, master: Floats, slots: Slots, aggregate: Floats) -> tuple[Floats, Slots]:
        """One step."""
        mean = _mixed(slots["m"], aggregate, self.beta1)
        energy = self._energy(slots["v"], np.multiply(aggregate, aggregate))
        return _moved(master, mean, energy, self.lr, self.tau), {"m": mean, "v": energy}

    def _energy(self, old: Floats, squares: Floats) -> Floats:
        return _mixed(old, squares, self.beta2)


@dataclass(frozen=True, slots=True)
class Yogi(Adam):
    """``v = v - (1 - beta2) d^2 sign(v - d^2)``, then as ``Adagrad``."""

    def _energy(self, old: Floats, squares: Floats) -> Floats:
        change = np.multiply(squares, np.sign(np.subtract(old, squares)))
        energy: Floats = np.subtract(old, np.multiply(change, np.float32(1 - self.beta2)))
        return energy


def _mixed(old: Floats, new: Floats, beta: float) -> Floats:
    mixed: Floats = np.add(np.multiply(old, np.float32(beta)), np.multiply(new, np.float32(1 - beta)))
    return mixed


def _moved(master: Floats, mean: Floats, energy: Floats, lr: float, tau: float) -> Floats:
    step = np.divide(mean, np.add(np.sqrt(energy), np.float32(tau)))
    moved: Floats = np.add(master, np.multiply(step, np.float32(lr)))
    return moved


def _check(**betas: float) -> None:
    for name, beta in betas.items():
        if not 0 <= beta < 1:
            raise ConfigError(f"a server optimizer with {name} = {beta}: it must be at least 0 and below 1")


def _check_tau(tau: float) -> None:
    if not 1e-12 <= tau <= 1e6:
        raise ConfigError(f"a server optimizer with tau = {tau}: it must be from 1e-12 to 1e6")
