"""Epoch generators: what draws the order of samples, for several devices at once.

NumPy seeds a generator by mixing words, O'Neill: Developing a seed_seq Alternative, 2015 (``SeedSequence``).
For one device that takes longer than to draw the order of a few rows; for many it is arithmetic on arrays.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from edge_agent.trainer import epoch_generator

__all__ = ["EpochGenerators"]

Words = NDArray[np.uint32]

_POOL = 4
_WORDS = 8
_MASK = 0xFFFFFFFF
_HALF = np.uint32(16)
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)


def _powers(first: int, factor: int, count: int) -> Words:
    """uint32[count, 1]: ``first * factor**i`` modulo 2**32."""
    return np.array([[first * pow(factor, i, 1 << 32) & _MASK] for i in range(count)], np.uint32)


_POOLING = _powers(0x43B0D7E5, 0x931E8875, _POOL * _POOL + 1)
_DRAWING = _powers(0x8B51F9DD, 0x58F38DED, _WORDS + 1)


class EpochGenerators:
    """``edge_agent.trainer.epoch_generator`` for the training ``seeds``, each below 2**32, of a group of
    devices: those of an epoch are seeded together when the first is asked for. Each is asked for once."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = np.array(seeds, np.uint32)
        self._places = {seed: place for place, seed in enumerate(seeds)}
        self._states: dict[int, NDArray[np.uint64]] = {}

    def __call__(self, seed: int, epoch: int) -> np.random.Generator:
        """The generator of one training's epoch."""
        place = self._places.get(seed)
        if place is None:
            return epoch_generator(seed, epoch)
        states = self._states.get(epoch)
        if states is None:
            states = self._states[epoch] = _states(self._seeds, epoch)
        # numpy takes any ISeedSequence, its annotation only its own class
        return np.random.Generator(np.random.PCG64(cast(np.random.SeedSequence, _Seeded(states[place]))))


class _Seeded(ISeedSequence):
    """The words that a generator is to be seeded with."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        """Those words: PCG64 asks for four of 64 bits."""
        return self._words


def _states(seeds: Words, epoch: int) -> NDArray[np.uint64]:
    """uint64[seeds, 4]: what ``SeedSequence([seed, epoch]).generate_state(4, np.uint64)`` gives for each."""
    entropy = np.zeros((_POOL, len(seeds)), np.uint32)
    entropy[0], entropy[1] = seeds, epoch
    pool = _hashed(entropy, _POOLING[: _POOL + 1])
    at = _POOL
    for source in range(_POOL):
        others = [place for place in range(_POOL) if place != source]
        mixed = _MIX_LEFT * pool[others] - _MIX_RIGHT * _hashed(pool[source], _POOLING[at : at + _POOL])
        pool[others] = mixed ^ mixed >> _HALF
        at += _POOL - 1
    words = np.ascontiguousarray(_hashed(np.concatenate([pool, pool]), _DRAWING).T)
    return words.astype("<u4", copy=False).view("<u8").astype(np.uint64, copy=False)


def _hashed(words: Words, factors: Words) -> Words:
    """Each row with the factor of its place and the next one."""
    hashed = (words ^ factors[:-1]) * factors[1:]
    return hashed ^ hashed >> _HALF
