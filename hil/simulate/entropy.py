"""Randomness that a seed decides: who draws what depends on nothing but the seed and a name."""

import hashlib
import random
from typing import cast

__all__ = ["Chance", "Entropy", "chance_of"]


class Entropy:
    """Bytes as ``secrets.token_bytes`` gives them, the same ones for the same seed and name."""

    __slots__ = ("_drawn", "_key")

    def __init__(self, seed: int, name: str) -> None:
        self._key = f"{seed} {name} ".encode()
        self._drawn = 0

    def __call__(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        self._drawn += 1
        return hashlib.shake_128(self._key + str(self._drawn).encode()).digest(count)


class Chance:
    """Jitter of one's own, as ``random.Random.uniform`` gives it, who would keep 2.5 KB: the upper half of a
    linear congruential generator (Knuth's MMIX) is random enough to spread devices by."""

    __slots__ = ("_state",)

    def __init__(self, seed: int, name: str) -> None:
        self._state = int.from_bytes(Entropy(seed, f"{name} chance")(8), "big")

    def uniform(self, low: float, high: float) -> float:
        """Between ``low`` and ``high``."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return low + (high - low) * (self._state >> 32) * 2.0**-32


def chance_of(seed: int, name: str) -> random.Random:
    """A ``Chance`` for agents, who ask for nothing but ``uniform``."""
    return cast(random.Random, Chance(seed, name))
