"""What each codec can represent comes back as it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.codec import codec_for, codec_seed, decode
from fl_protocol.codec.levels import LEVELS, energy_factor, octets_of, spread_codes
from fl_protocol.codec.mask import kept_count, kept_positions
from fl_protocol.codec.rotation import STRIP, Rotation, from_strips, to_strips
from fl_protocol.codec.streams import MASK, Stream
from fl_protocol.layout import TensorLayout

SEED = codec_seed(bytes(range(16)))


@given(bits=st.lists(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100), min_size=6, max_size=6))
def test_float32_returns_the_very_bits(bits):
    """Every finite value within bounds, denormal and -0 included."""
    layout, codec, x = TensorLayout.of([("w", [2, 3])]), codec_for("float32"), np.array(bits, np.float32)
    assert decode(codec, codec.encode(x, layout, SEED), layout, SEED).tobytes() == x.tobytes()


@given(
    scale=st.floats(min_value=2.0**-60, max_value=2.0**60),
    codes=st.lists(st.integers(-127, 127), min_size=1, max_size=300),
    number=st.integers(0, 2**64),
)
@settings(deadline=None)
def test_int8_does_not_round_what_is_a_multiple_of_its_scale(scale, codes, number):
    """Stochastic rounding leaves whole numbers alone, whatever the dither."""
    layout, seed = TensorLayout.of([("w", [len(codes) + 1])]), codec_seed(number.to_bytes(16, "big"))
    x = np.array([*codes, 127], np.float32) * np.float32(scale)
    payload = codec_for("int8").encode(x, layout, seed)
    assert list(np.frombuffer(payload, np.int8, offset=4)) == [*codes, 127]


@given(
    codes=st.binary(min_size=512, max_size=512),
    exponents=st.lists(st.integers(-40, 40), min_size=6, max_size=6),
)
@settings(deadline=None)
def test_eden_encodes_a_decoded_payload_to_the_same_payload(codes, exponents):
    """Where no block is padded, decoded values are representable, to the last bit."""
    layout = TensorLayout.of([("w", [2, 1024]), ("b", [1024]), ("c", [512]), ("d", [256]), ("e", [256])])
    codec = codec_for("eden(bits=1)")
    payload = np.exp2(exponents).astype("<f4").tobytes() + codes
    assert codec.encode(decode(codec, payload, layout, SEED), layout, SEED) == payload


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=6, max_size=6))
def test_float16_returns_what_is_a_float16(bits):
    """Every finite one, denormal and -0 included."""
    x = np.array([word if word & 0x7C00 != 0x7C00 else word & 0x83FF for word in bits], "<u2").view("<f2")
    layout, codec, wide = TensorLayout.of([("w", [2, 3])]), codec_for("float16"), x.astype(np.float32)
    assert decode(codec, codec.encode(wide, layout, SEED), layout, SEED).tobytes() == wide.tobytes()


def test_float16_limits_what_it_cannot_hold():
    """Beyond 65504 values become 65504, and never infinite."""
    layout, codec = TensorLayout.of([("w", [4])]), codec_for("float16")
    x = np.array([65520, -1e30, 65504, 1e-9], np.float32)
    assert decode(codec, codec.encode(x, layout, SEED), layout, SEED).tolist() == [65504, -65504, 65504, 0]


@pytest.mark.parametrize("bits", [2, 4])
def test_the_levels_are_those_of_lloyd_and_max(bits):
    """Each level is the mean of the Gaussian values that are nearest to it, within its rounding."""
    levels = np.array(LEVELS[bits]) / 100
    x = np.linspace(0, 8, 800_001)
    density = np.exp(-x * x / 2)
    nearest = np.abs(x[:, np.newaxis] - levels).argmin(axis=1)
    means = np.bincount(nearest, x * density) / np.bincount(nearest, density)
    assert means == pytest.approx(levels, abs=0.012)
    products, energies = x * levels[nearest], levels[nearest] ** 2
    exact = np.average(energies, weights=density) / np.average(products, weights=density) ** 2
    assert energy_factor(bits) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_no_sum_of_a_rotation_of_levels_leaves_the_exact_integers(bits):
    """Cauchy and Schwarz: a sum of B terms of a vector of norm ``sqrt(B) |c|`` is at most ``B |c|``."""
    assert 1024 * (1024**0.5) * max(LEVELS[bits]) < 2**24


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_codes_come_back(bits):
    """The first code lies lowest, and stands for the level of its number."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, 64).astype(np.uint8)
    octets, out = octets_of(codes, bits), np.empty(64, np.float32)
    assert int.from_bytes(octets.tobytes(), "little") == sum(int(c) << bits * i for i, c in enumerate(codes))
    spread_codes(octets, bits, out)
    levels = sorted([*LEVELS[bits], *(-level for level in LEVELS[bits])])
    assert out.tolist() == [levels[code] for code in codes]


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 31, 33, 1023, 1024, 1025])
def test_eden_errs_only_at_right_angles(size, bits):
    """The decoded update's projection on the delta is the delta: a lone value comes back as it was."""
    x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    layout, codec = TensorLayout.of([("w", [size])]), codec_for(f"eden(bits={bits})")
    decoded = decode(codec, codec.encode(x, layout, SEED), layout, SEED).astype(np.float64)
    assert decoded @ x == pytest.approx(float(x.astype(np.float64) @ x), rel=1e-5)


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.9])
def test_only_the_kept_share_of_each_segment_travels(keep):
    """``ceil(keep * m)`` of each segment; the mask has a key for every element, of whole segments too."""
    layout, codec = TensorLayout.of([("b", [7]), ("w", [70_000])]), codec_for(f"eden(bits=1,keep={keep})")
    decoded = decode(codec, codec.encode(np.ones(layout.size, np.float32), layout, SEED), layout, SEED)
    mask, start = Stream(SEED, MASK), 0
    for size in (7, 65_536, 70_000 - 65_536):
        kept = start + kept_positions(mask, size, kept_count(size, keep))
        assert np.count_nonzero(decoded[kept]) > 0.9 * len(kept)
        decoded[kept] = 0
        start += size
    assert not decoded.any()


@given(size=st.integers(1, 700), share=st.floats(0.001, 1), number=st.integers(0, 2**64))
@settings(deadline=None)
def test_the_kept_positions_are_those_of_the_smallest_keys(size, share, number):
    """The partition agrees with a full sort in whole numbers."""
    seed, count = codec_seed(number.to_bytes(16, "big")), kept_count(size, share)
    words = [int(word) for word in Stream(seed, MASK).words(-(-size // 2))]
    halves = [half for word in words for half in (word % 2**32, word >> 32)]
    keys = sorted((key, position) for position, key in enumerate(halves[:size]))
    expected = sorted(position for _, position in keys[:count])
    assert kept_positions(Stream(seed, MASK), size, count).tolist() == expected


def test_of_equal_keys_the_first_are_kept():
    """Chance makes such a tie once in some ten thousand segments."""

    class Tied:
        def octets(self, count):
            return np.array([9, 5, 7, 5, 5, 1, 5], "<u4").view(np.uint8)[:count]

    assert kept_positions(Tied(), 7, 3).tolist() == [1, 3, 5]
    assert kept_positions(Tied(), 7, 5).tolist() == [1, 3, 4, 5, 6]


@pytest.mark.parametrize("width", [64, 128, 256, 512, 1024])
def test_the_rotation_is_the_one_that_is_written_down(width):
    """Both directions agree with the matrix ``(-1)^(bits of i and j)``, in whole numbers."""
    random = np.random.default_rng(width)
    index = np.arange(width)
    parity = np.array([[bin(i & j).count("1") & 1 for j in index] for i in index])
    hadamard = 1 - 2 * parity
    octets = random.integers(0, 256, (3, 3 * width // 8), np.uint8)
    codes, d1, d2 = (np.unpackbits(bits, bitorder="little").reshape(3, width) * 2.0 - 1 for bits in octets)
    rotation, blocks = Rotation(3 * width), np.empty((3, width), np.float32)
    in_strips = codes.reshape(3, -1, STRIP).transpose(1, 0, 2)
    rotation.strips(3 * width)[:] = in_strips.reshape(-1)
    rotation.unrotate(octets[1].copy(), octets[2].copy(), np.float32([1, 2, 0.5]), blocks)
    decoded = d1 * ((d2 * (codes @ hadamard)) @ hadamard)
    assert np.array_equal(blocks, decoded * [[1], [2], [0.5]])
    rotated = rotation.rotate(decoded.astype(np.float32), octets[1].copy(), octets[2].copy())
    assert np.array_equal(rotated, in_strips.reshape(-1, 3 * STRIP) * width**2)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_packed_codes_are_brought_into_strips_and_back(bits):
    """Strip after strip, and in each the blocks in order."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 4, STRIP), np.uint8)
    packed, swapped = octets_of(codes, bits), octets_of(codes.transpose(1, 0, 2), bits)
    assert to_strips(packed, 3, bits).tobytes() == swapped.tobytes()
    assert from_strips(swapped, 3, bits).tobytes() == packed.tobytes()
