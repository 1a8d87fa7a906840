"""Which aggregators there are by name, and those that users write, by ``module:Class``."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from broker_coordinator.aggregation.aggregator import Aggregator, HoldingAggregator, Mean
from broker_coordinator.aggregation.calibration_rule import CachedCalibration
from broker_coordinator.aggregation.coordinate_median import CoordinateMedian
from broker_coordinator.aggregation.krum import Krum
from broker_coordinator.aggregation.trimmed_mean import TrimmedMean
from fl_io.users_code import made
from fl_protocol.errors import AggregatorError, ConfigError

__all__ = ["AGGREGATORS", "AnyAggregator", "aggregator_for", "fault_of", "is_users"]

AnyAggregator: TypeAlias = Aggregator | HoldingAggregator | CachedCalibration

AGGREGATORS: dict[str, Callable[..., AnyAggregator]] = {
    "mean": Mean,
    "trimmed_mean": TrimmedMean,
    "median": CoordinateMedian,
    "krum": Krum,
    "ca2fl": CachedCalibration,
}
_WAIT = {"weigh": "with their devices, which ask again"}
_METHODS = {False: ("weigh", "init", "accumulate", "finalize"), True: ("weigh", "combine")}


def is_users(name: str) -> bool:
    """Whether the name is that of a class of the user's."""
    return ":" in name


def aggregator_for(name: str, options: Mapping[str, Any] | None = None) -> AnyAggregator:
    """The aggregator of that name; a user's is looked for on Python's path, then in the working directory.

    Raises:
        ConfigError: there is none, its options are wrong, or the class cannot be loaded or is none.
    """
    if is_users(name):
        return _users(name)
    if name not in AGGREGATORS:
        raise ConfigError(
            f"unknown aggregator {name!r}: use one of {', '.join(sorted(AGGREGATORS))}",
            hint="or name a class of your own as module:Class: docs/guide-strategies.md",
        )
    try:
        return AGGREGATORS[name](**(options or {}))
    except TypeError as error:
        raise ConfigError(f"aggregator {name!r}: {error}") from None


def _users(name: str) -> AnyAggregator:
    rule: Any = made(name, what="aggregator", folder=os.getcwd())
    holds = getattr(rule, "holds_updates", None)
    if not isinstance(holds, bool):
        raise ConfigError(f"the aggregator {name!r} has no holds_updates: set it to False (or True)")
    missing = [method for method in _METHODS[holds] if not callable(getattr(rule, method, None))]
    if missing:
        raise ConfigError(
            f"the aggregator {name!r} has no {', '.join(missing)}",
            hint=f"with holds_updates = {holds} it needs {', '.join(_METHODS[holds])}",
        )
    found: AnyAggregator = rule
    return found


def fault_of(name: str, doing: str, error: Exception | str) -> AggregatorError:
    """The error of an aggregator that failed in ``doing``."""
    what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return AggregatorError(
        f"the aggregator {name!r} failed in {doing}: {what}"[:300],
        hint=f"its updates wait {_WAIT.get(doing, 'in the journal')}: mend it, and restart the coordinator",
    )
