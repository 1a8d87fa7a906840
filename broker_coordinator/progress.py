"""Progress: what long work says between its pieces, to whoever watches whether it hangs.

A piece is bounded by a model's size or a batch, never by how much there is to do: work that hangs says
nothing.
"""

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "unwatched"]

Progress: TypeAlias = Callable[[], None]
"""Called after each piece; returns at once, and raises nothing."""


def unwatched() -> None:
    """For work that nobody watches."""
