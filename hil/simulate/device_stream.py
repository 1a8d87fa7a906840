"""A virtual device's own randomness: a seed and its number decide it, whatever other devices there are."""

import hashlib
from statistics import NormalDist

import numpy as np

__all__ = ["DeviceStream", "generator"]

_STANDARD = NormalDist()


def _bits(seed: int, device: int, purpose: str) -> np.random.PCG64:
    digest = hashlib.sha256(f"{seed} {device} {purpose}".encode()).digest()
    return np.random.PCG64(int.from_bytes(digest[:16]))


def generator(seed: int, device: int, purpose: str) -> np.random.Generator:
    """NumPy's generator of a device, one for each ``purpose``."""
    return np.random.Generator(_bits(seed, device, purpose))


class DeviceStream:
    """Single numbers, from raw words of PCG64: the same ones with every version of NumPy."""

    __slots__ = ("_words",)

    def __init__(self, seed: int, device: int, purpose: str) -> None:
        self._words = _bits(seed, device, purpose)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Between ``low`` and ``high``, neither of them."""
        share = ((int(self._words.random_raw()) >> 12) + 0.5) * 2.0**-52
        return low + share * (high - low)

    def normal(self) -> float:
        """Standard normal."""
        return _STANDARD.inv_cdf(self.uniform())
