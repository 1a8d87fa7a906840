"""Randomness that a seed decides: who draws what depends on nothing but the seed and a name."""

import hashlib
import random

__all__ = ["Entropy", "chance_of"]


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


def chance_of(seed: int, name: str) -> random.Random:
    """A generator of one's own for jitter."""
    return random.Random(f"{seed} {name} chance")
