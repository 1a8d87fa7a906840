"""Staleness weights: how much an update counts that was trained on an old version.

Xie, Koyejo, Gupta: Asynchronous Federated Optimization (2019), section 5. The step of an asynchronous
server is a delayed one, stable only while step times delay stays small; so the weight multiplies the
update's values and not the denominator (see ``aggregator``), and staleness damps the step.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from fl_protocol.errors import ConfigError

__all__ = ["StalenessWeight", "constant", "hinge", "polynomial"]

StalenessWeight: TypeAlias = Callable[[int], np.float32]
"""Maps staleness (versions committed since the base; fresh is 0) to a weight in (0, 1]."""


def constant() -> StalenessWeight:
    """Count every update fully, however old: for synchronous rounds only, where none is."""
    return lambda staleness: np.float32(1)


def polynomial(exponent: float = 0.5) -> StalenessWeight:
    """Weigh by ``(1 + staleness) ** -exponent``.

    Raises:
        ConfigError: ``exponent`` is negative.
    """
    if not exponent >= 0:
        raise ConfigError(f"a staleness exponent of {exponent}: it must not be negative")
    return lambda staleness: np.float32((1.0 + staleness) ** -exponent)


def hinge(grace: int, slope: float) -> StalenessWeight:
    """Count fully for ``grace`` versions, then fall as ``1 / (1 + slope * (staleness - grace))``.

    Raises:
        ConfigError: ``grace`` or ``slope`` is negative.
    """
    if grace < 0 or not slope >= 0:
        raise ConfigError(f"a staleness hinge with grace {grace} and slope {slope}: neither may be negative")
    return lambda staleness: np.float32(1.0 / (1.0 + slope * max(0, staleness - grace)))
