"""PCG64 as arithmetic: the words that numpy's own generator gives, for many streams at once."""

import hashlib

import numpy as np
import pytest

from fl_protocol.codec.pcg64 import first_words
from fl_protocol.codec.streams import MASK, SIGN1, Stream, first_octets


def numpys(state, increment, count):
    generator = np.random.PCG64(0)
    generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state, "inc": increment},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return generator.random_raw(count)


@pytest.mark.parametrize("state", [0, 1, 1 << 64, (1 << 64) - 1, (1 << 128) - 1])
@pytest.mark.parametrize("increment", [1, (1 << 64) + 1, (1 << 64) - 1, (1 << 128) - 1])
def test_every_carry_is_carried(state, increment):
    """The corners of 128-bit arithmetic: words from there on are numpy's."""
    seed = state.to_bytes(16, "little") + increment.to_bytes(16, "little")
    assert np.array_equal(first_words(seed, 300)[0], numpys(state, increment, 300))


def test_an_even_increment_is_taken_as_odd():
    """Seeds are hashes: half of them end in a bit that the generator does not have."""
    even, odd = (bytes(16) + bytes([last]) + bytes(15) for last in (6, 7))
    assert np.array_equal(first_words(even, 5), first_words(odd, 5))


@pytest.mark.parametrize("count", [1, 8, 39, 309, 8192])
@pytest.mark.parametrize("purpose", [MASK, SIGN1])
def test_many_streams_at_once_are_each_the_stream_of_its_seed(count, purpose):
    """What a coordinator draws for a whole commit is what each device drew alone."""
    seeds = [hashlib.sha256(bytes([number])).digest()[:16] for number in range(40)]
    together = first_octets(seeds, purpose, count)
    assert together.shape == (40, count)
    for seed, row in zip(seeds, together, strict=True):
        assert np.array_equal(row, Stream(seed, purpose).octets(count))


def test_a_seed_of_another_length_is_refused():
    """16 bytes, as everywhere: a shorter one would shift all streams behind it."""
    with pytest.raises(ValueError, match="16 bytes"):
        first_octets([bytes(16), bytes(15)], SIGN1, 8)
