"""Which server optimizers there are by name."""

from collections.abc import Callable, Mapping
from typing import Any

from broker_coordinator.aggregation.adaptive_optimizer import Adagrad, Adam, Momentum, Yogi
from broker_coordinator.aggregation.server_optimizer import ServerOptimizer, Sgd
from fl_protocol.errors import ConfigError

__all__ = ["SERVER_OPTIMIZERS", "server_optimizer_for"]

SERVER_OPTIMIZERS: dict[str, Callable[..., ServerOptimizer]] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "adam": Adam,
    "yogi": Yogi,
}


def server_optimizer_for(name: str, lr: float, options: Mapping[str, Any] | None = None) -> ServerOptimizer:
    """The optimizer of that name.

    Raises:
        ConfigError: there is none, ``lr`` is not above 0, or its options are wrong.
    """
    if name not in SERVER_OPTIMIZERS:
        known = ", ".join(sorted(SERVER_OPTIMIZERS))
        raise ConfigError(f"unknown server optimizer {name!r}: use one of {known}")
    if not lr > 0:
        raise ConfigError(f"a server learning rate of {lr}: it must be above 0")
    try:
        return SERVER_OPTIMIZERS[name](lr, **(options or {}))
    except TypeError as error:
        raise ConfigError(f"server optimizer {name!r}: {error}") from None
