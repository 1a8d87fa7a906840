"""Random streams: raw PCG64 words from a state that both sides derive from the codec seed.

Only raw output is used: the methods of numpy's Generator may change between releases, the bit
generator may not. O'Neill: PCG (2014), the variant XSL RR 128/64.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

from fl_protocol.codec.pcg64 import first_words
from fl_protocol.codec.seed import stream_seed, stream_state

__all__ = ["MASK", "ROUND", "SIGN1", "SIGN2", "Stream", "first_octets", "first_octets_of"]

MASK = b"mask"
SIGN1 = b"sign1"
SIGN2 = b"sign2"
ROUND = b"round"


class _Unseeded(ISeedSequence):
    """Zeros in place of numpy's own seeding, which takes ten times as long and is replaced anyway."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> npt.NDArray[Any]:
        """``n_words`` zeros."""
        return np.zeros(n_words, dtype)


class Stream:
    """The random words of one purpose of one update, drawn in wire order.

    Raises:
        ValueError: ``seed`` is not 16 bytes long.
    """

    def __init__(self, seed: bytes, purpose: bytes) -> None:
        state, increment = stream_state(seed, purpose)
        # numpy takes any ISeedSequence, its annotation only its own class
        self._generator = np.random.PCG64(cast(np.random.SeedSequence, _Unseeded()))
        self._generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": increment},
            "has_uint32": 0,
            "uinteger": 0,
        }

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The next ``count`` words in a fresh array, little-endian in memory."""
        return self._generator.random_raw(count).astype("<u8", copy=False)

    def octets(self, count: int) -> npt.NDArray[np.uint8]:
        """The next ``count`` bytes, each word's lowest byte first; what is left of the last word is lost."""
        return self.words(-(-count // 8)).view(np.uint8)[:count]


def first_octets(seeds: Sequence[bytes], purpose: bytes, count: int) -> npt.NDArray[np.uint8]:
    """What ``octets(count)`` of a fresh stream gives, for each of several seeds: uint8[seeds, count].

    Raises:
        ValueError: a seed is not 16 bytes long.
    """
    return first_octets_of(seeds, [purpose], count).reshape(len(seeds), count)


def first_octets_of(seeds: Sequence[bytes], purposes: Sequence[bytes], count: int) -> npt.NDArray[np.uint8]:
    """``first_octets`` for several purposes: uint8[purposes, seeds, count].

    Raises:
        ValueError: a seed is not 16 bytes long.
    """
    together = b"".join([stream_seed(seed, purpose) for purpose in purposes for seed in seeds])
    words = first_words(together, -(-count // 8)).astype("<u8", copy=False)
    return words.view(np.uint8)[:, :count].reshape(len(purposes), len(seeds), count)
