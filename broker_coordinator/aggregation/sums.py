"""Aggregation: the updates of one version on their way through its rule, whatever the rule does.

A rule may be a user's own. What it raises, what it gives that is no aggregate, and a piece that it keeps
become an ``AggregatorError`` that names it.
"""

from collections.abc import Iterable
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.aggregator import Aggregator, HoldingAggregator, State
from broker_coordinator.aggregation.aggregator_registry import AnyAggregator, fault_of, is_users
from broker_coordinator.aggregation.calibration import CalibratedSums
from broker_coordinator.aggregation.calibration_rule import CachedCalibration
from broker_coordinator.aggregation.held_updates import HeldUpdates
from broker_coordinator.aggregation.rules import FoldRules
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.progress import Progress, unwatched
from broker_coordinator.storage.records import AcceptedUpdate
from broker_coordinator.storage.store import Journal
from fl_protocol.errors import ConfigError, StorageError

__all__ = ["Sums", "sums_of"]


class Sums(Protocol):
    """What a rule has of a version so far. Each verb raises AggregatorError if the rule fails."""

    def begin(self, update: AcceptedUpdate) -> None:
        """The update whose pieces come next."""
        ...

    def put(self, start: int, values: NDArray[np.float32], weight: np.float32) -> None:
        """One piece of an update, in order, already times the update's scale; ``values`` is scratch."""
        ...

    def end(self, weight: np.float32) -> None:
        """The update was whole."""
        ...

    def finish(self) -> NDArray[np.float32]:
        """The aggregate: float32[size], finite, the caller's own."""
        ...

    def slots(self) -> dict[str, NDArray[np.float32]]:
        """What the rule keeps in the next version's state: float32[size] by name."""
        ...


def sums_of(
    rules: FoldRules, state: VersionState, journal: Journal | None, progress: Progress = unwatched
) -> Sums:
    """Nothing yet of the version after ``state``; ``journal`` holds the updates of those before.

    Raises:
        ConfigError: the rule does not exist, or needs a journal.
    """
    rule, name, size = rules.make_aggregator(), rules.aggregator, rules.layout.weight_size
    if isinstance(rule, CachedCalibration):
        if journal is None:
            raise ConfigError(f"the aggregator {name!r} needs the journal of earlier versions")
        return CalibratedSums(rule, journal, state, rules.layout, progress)
    if _holds(rule):
        return _Held(rule, name, size, progress)
    return _Streamed(rule, name, size)  # type: ignore[arg-type]


def _holds(rule: AnyAggregator) -> TypeGuard[HoldingAggregator]:
    return rule.holds_updates


class _Streamed:
    """Piece by piece into the rule's own state."""

    def __init__(self, rule: Aggregator, name: str, size: int) -> None:
        self._rule = rule
        self._name = name
        self._size = size
        self._watched = is_users(name)
        self._state: State | None = None

    def begin(self, update: AcceptedUpdate) -> None:
        pass

    def slots(self) -> dict[str, NDArray[np.float32]]:
        return {}

    def put(self, start: int, values: NDArray[np.float32], weight: np.float32) -> None:
        state = self._begun()
        try:
            self._rule.accumulate(state, start, values, weight)
        except MemoryError:
            raise
        except Exception as error:
            raise fault_of(self._name, "accumulate", error) from error
        if self._watched and _keeps(values, (state, getattr(self._rule, "__dict__", {}))):
            raise fault_of(
                self._name, "accumulate", "it keeps the piece it was given: that is scratch, copy it"
            )

    def end(self, weight: np.float32) -> None:
        pass

    def finish(self) -> NDArray[np.float32]:
        state = self._begun()
        try:
            with np.errstate(all="ignore"):
                aggregate = self._rule.finalize(state)
        except MemoryError:
            raise
        except Exception as error:
            raise fault_of(self._name, "finalize", error) from error
        return _checked(aggregate, self._size, self._name, "finalize")

    def _begun(self) -> State:
        if self._state is None:
            try:
                self._state = self._rule.init(self._size)
            except MemoryError:
                raise
            except Exception as error:
                raise fault_of(self._name, "init", error) from error
        return self._state


class _Held:
    """Whole, until the version closes."""

    def __init__(self, rule: HoldingAggregator, name: str, size: int, progress: Progress) -> None:
        self._rule = rule
        self._name = name
        self._held = HeldUpdates(size, progress)

    def begin(self, update: AcceptedUpdate) -> None:
        pass

    def slots(self) -> dict[str, NDArray[np.float32]]:
        return {}

    def put(self, start: int, values: NDArray[np.float32], weight: np.float32) -> None:
        self._held.put(values)

    def end(self, weight: np.float32) -> None:
        self._held.end(weight)

    def finish(self) -> NDArray[np.float32]:
        try:
            with np.errstate(all="ignore"):
                aggregate = self._rule.combine(self._held)
        except (StorageError, MemoryError):
            raise
        except Exception as error:
            raise fault_of(self._name, "combine", error) from error
        return _checked(aggregate, self._held.size, self._name, "combine")


def _keeps(values: NDArray[np.float32], places: Iterable[Any], depth: int = 3) -> bool:
    """Whether an array in there shows the memory of ``values``."""
    for place in places:
        if isinstance(place, np.ndarray):
            if np.may_share_memory(place, values):
                return True
        elif depth and isinstance(place, dict | list | tuple | set):
            inside = place.values() if isinstance(place, dict) else place
            if _keeps(values, list(inside)[-4:] if len(inside) > 64 else inside, depth - 1):
                return True
    return False


def _checked(aggregate: object, size: int, name: str, doing: str) -> NDArray[np.float32]:
    if not isinstance(aggregate, np.ndarray):
        raise fault_of(name, doing, f"it gave {type(aggregate).__name__}, not float32[{size}]")
    if aggregate.dtype != np.float32 or aggregate.shape != (size,):
        raise fault_of(name, doing, f"it gave {aggregate.dtype}{list(aggregate.shape)}, not float32[{size}]")
    if not np.isfinite(aggregate).all():
        raise fault_of(name, doing, "it gave a value that is not finite")
    return aggregate if aggregate.flags.writeable and aggregate.flags.owndata else aggregate.copy()
