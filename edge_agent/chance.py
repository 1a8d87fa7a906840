"""Chance: what a device draws its delays by, so that a fleet does not act in step."""

from typing import Protocol

__all__ = ["Chance"]


class Chance(Protocol):
    """``random.Random`` is one; a simulator has one that a seed and the device's name decide."""

    def uniform(self, low: float, high: float, /) -> float:
        """A number between ``low`` and ``high``."""
        ...
