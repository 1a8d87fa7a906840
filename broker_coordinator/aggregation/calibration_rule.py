"""The rule ``ca2fl`` as others see it; ``calibration`` does its work."""

from dataclasses import dataclass

from broker_coordinator.aggregation.aggregator import UpdateContext
from fl_protocol.errors import ConfigError
from fl_protocol.update import UpdateHeader

__all__ = ["CachedCalibration"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedCalibration:
    """The rule's own parameters: an update is not called upon after ``age`` versions, and the sum of what is
    cached is kept in ``sum_bits`` (32 or 64).

    Raises:
        ConfigError: ``age`` is below 1, or ``sum_bits`` something else.
    """

    age: int = 20
    sum_bits: int = 64

    def __post_init__(self) -> None:
        if self.sum_bits not in (32, 64):
            raise ConfigError(f"ca2fl with sum_bits = {self.sum_bits}: it must be 32 or 64")
        if self.age < 1:
            raise ConfigError(f"ca2fl with age = {self.age}: it must be at least 1")

    @property
    def holds_updates(self) -> bool:
        """They are in the journal."""
        return False

    def weigh(self, update: UpdateHeader, context: UpdateContext) -> float:
        """One."""
        return 1.0
