"""Randomness that a seed decides: who draws what depends on nothing but the seed and a name."""

import hashlib

__all__ = ["Entropy", "SeededChance"]


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


class SeededChance:
    """Jitter of a device's own: an ``edge_agent.chance.Chance``. ``random.Random`` would keep 2.5 KB of each;
    the upper half of a linear congruential generator (Knuth's MMIX) is random enough to spread devices by."""

    __slots__ = ("_state",)

    def __init__(self, seed: int, name: str) -> None:
        self._state = int.from_bytes(Entropy(seed, f"{name} chance")(8), "big")

    def uniform(self, low: float, high: float) -> float:
        """Between ``low`` and ``high``."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return low + (high - low) * (self._state >> 32) * 2.0**-32
