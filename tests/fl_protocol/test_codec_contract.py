"""The contract of update codecs, run on every codec."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_protocol.codec import codec_for, codec_seed, decode
from fl_protocol.errors import CodecError, LayoutError
from fl_protocol.layout import TensorLayout

SPECS = (
    "float32",
    "float16",
    "int8",
    "eden(bits=1)",
    "eden(bits=2)",
    "eden(bits=4)",
    "eden(bits=1,keep=0.25)",
    "eden(bits=1,keep=0.9)",
    "eden(bits=2,keep=0.25)",
    "sparse(bits=2,keep=0.05)",
    "sparse(bits=1,keep=0.5)",
    "sparse(bits=8,keep=0.001)",
)
SCALED = SPECS[2:]
SEEDED = SPECS[2:9]
MIB = 1 << 20

every_codec = pytest.mark.parametrize("spec", SPECS)
sizes = st.lists(st.sampled_from([1, 2, 3, 31, 33, 64, 65, 1023, 1024, 1025]), min_size=1, max_size=5)
scale_bits = st.one_of(
    st.integers(0x0D800000, 0x71800000),
    st.sampled_from([0, 0x0D800000, 0x71800000]),
    st.integers(0, 2**32 - 1),
)


def vectors(*tensor_sizes):
    """A layout of one-dimensional tensors; size 0 makes a scalar."""
    return TensorLayout.of((f"t{i}", [size] if size else []) for i, size in enumerate(tensor_sizes))


def gaussian(size, seed=0):
    """float32[size] with a magnitude that updates have."""
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32) * np.float32(1e-2)


def seed_of(number):
    """The codec seed of a numbered update."""
    return codec_seed(number.to_bytes(16, "big"))


SEED = seed_of(0)
ODD = vectors(1, 2, 3, 31, 33, 1023, 1025, 65_536 + 1, 0)


@every_codec
@given(sizes=sizes, number=st.integers(0, 2**64))
@settings(max_examples=30, deadline=None)
def test_a_payload_has_the_length_that_the_layout_says_and_passes_its_own_check(spec, sizes, number):
    """Length is a function of codec and layout, or bounded by one; what is encoded is accepted."""
    codec, layout = codec_for(spec), vectors(*sizes)
    payload = codec.encode(gaussian(layout.size), layout, seed_of(number))
    assert len(payload) == codec.largest(layout) or (len(payload) < codec.largest(layout) and not codec.exact)
    codec.check(payload, layout)


@every_codec
def test_pieces_cover_the_vector_once_in_wire_order(spec):
    """Each element is in one piece of at most 65,536, in order, whatever the tensors' sizes."""
    codec = codec_for(spec)
    payload = codec.encode(gaussian(ODD.size), ODD, SEED)
    end = 0
    for start, values in codec.pieces(payload, ODD, SEED):
        assert start == end
        assert values.dtype == np.float32
        assert 0 < len(values) <= 65_536
        end = start + len(values)
    assert end == ODD.size


@every_codec
@pytest.mark.parametrize(
    "layout", [ODD, vectors(2048, 32, 320, 10), TensorLayout.of([("w", [70]), ("m", [5], "buffer")])]
)
def test_many_payloads_decode_at_once_to_the_same_bits(spec, layout):
    """Live updates are decoded together, an audit decodes them one by one: not a bit may differ."""
    codec = codec_for(spec)
    seeds = [seed_of(number) for number in range(70 if layout.size < 4000 else 3)]
    sparse = gaussian(layout.size) * (np.arange(layout.size) % 7 == 0)
    payloads = [
        codec.encode(sparse if number == 1 else gaussian(layout.size, number), layout, seed)
        for number, seed in enumerate(seeds)
    ]
    codec.check_all(payloads, layout)
    together = codec.decode_all(payloads, layout, seeds)
    for row, payload, seed in zip(together, payloads, seeds, strict=True):
        assert row.tobytes() == decode(codec, payload, layout, seed).tobytes()


@every_codec
@pytest.mark.parametrize(
    "layout", [ODD, vectors(2048, 32, 320, 10), TensorLayout.of([("w", [70]), ("m", [5], "buffer")])]
)
def test_many_deltas_are_encoded_at_once_to_what_each_is_alone(spec, layout):
    """A simulator encodes a stack of updates together: their payloads are those of devices."""
    codec = codec_for(spec)
    seeds = [seed_of(number) for number in range(70 if layout.size < 4000 else 3)]
    deltas = np.stack([gaussian(layout.size, number) for number in range(len(seeds))])
    deltas[1, np.arange(layout.size) % 7 != 0] = 0
    together = codec.encode_all(deltas, layout, seeds)
    alone = [codec.encode(delta, layout, seed) for delta, seed in zip(deltas, seeds, strict=True)]
    assert together == alone


@every_codec
def test_one_bad_delta_among_many_is_refused(spec):
    """A value that is not finite has no payload, in whatever company."""
    codec, layout = codec_for(spec), vectors(2048, 10)
    deltas = np.stack([gaussian(layout.size, number) for number in range(3)])
    deltas[2, 2050] = np.nan
    with pytest.raises(CodecError):
        codec.encode_all(deltas, layout, [seed_of(number) for number in range(3)])
    with pytest.raises(LayoutError):
        codec.encode_all(deltas[:, 1:], layout, [seed_of(number) for number in range(3)])


@every_codec
@pytest.mark.parametrize("spoil", [lambda payload: payload[:-1], lambda payload: b"\xff" * len(payload)])
def test_one_bad_payload_among_many_is_noticed(spec, spoil):
    """A wrong length, or numbers out of bounds; int8 knows none of them at the end of its payload."""
    codec, layout = codec_for(spec), vectors(2048, 10)
    payloads = [codec.encode(gaussian(layout.size), layout, SEED)] * 5
    codec.check_all(payloads, layout)
    payloads[3] = spoil(payloads[3])
    with pytest.raises(CodecError):
        codec.check_all(payloads, layout)


@every_codec
def test_an_update_is_encoded_and_decoded_without_state(spec):
    """The same call gives the same bytes, and another seed does not disturb it."""
    codec, x = codec_for(spec), gaussian(ODD.size)
    payload = codec.encode(x, ODD, SEED)
    decoded = decode(codec, payload, ODD, SEED)
    decode(codec, codec.encode(x, ODD, seed_of(1)), ODD, seed_of(1))
    assert codec.encode(x, ODD, SEED) == payload
    assert decode(codec, payload, ODD, SEED).tobytes() == decoded.tobytes()


@every_codec
def test_zeros_stay_zeros(spec):
    """A delta of zeros decodes to +0 everywhere, and has norm 0."""
    codec = codec_for(spec)
    payload = codec.encode(np.zeros(ODD.size, np.float32), ODD, SEED)
    assert decode(codec, payload, ODD, SEED).tobytes() == bytes(4 * ODD.size)
    assert codec.norm(payload, ODD, SEED) == 0


@pytest.mark.parametrize("spec", SCALED)
def test_values_below_all_scales_become_zeros(spec):
    """Denormal values are no reason for a denormal scale."""
    codec = codec_for(spec)
    payload = codec.encode(np.full(ODD.size, 1e-40, np.float32), ODD, SEED)
    assert not decode(codec, payload, ODD, SEED).any()


@every_codec
def test_the_largest_values_survive(spec):
    """2^100 is encoded, decodes to finite values, and its norm is finite."""
    codec, layout = codec_for(spec), vectors(1025, 3)
    payload = codec.encode(np.full(layout.size, 2.0**100, np.float32), layout, SEED)
    assert np.isfinite(decode(codec, payload, layout, SEED)).all()
    assert np.isfinite(codec.norm(payload, layout, SEED))


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**101, -(2.0**101)])
@pytest.mark.parametrize("where", [0, 700, -1])
def test_what_is_not_finite_is_not_encoded(spec, bad, where):
    """A diverged training ends in an error on the device, even at a position the mask drops."""
    x = gaussian(ODD.size)
    x[where] = bad
    with pytest.raises(CodecError, match="not finite"):
        codec_for(spec).encode(x, ODD, SEED)


@every_codec
@pytest.mark.parametrize("vector", [np.zeros(4, np.float32), np.zeros(5), np.zeros((5, 1), np.float32)])
def test_a_vector_of_another_shape_or_type_is_refused(spec, vector):
    """Only float32[n] is encoded."""
    with pytest.raises(LayoutError, match=r"expected float32\[5\]"):
        codec_for(spec).encode(vector, vectors(2, 3), SEED)


@every_codec
def test_a_strided_vector_is_encoded_as_its_copy(spec):
    """The caller need not know how its array lies in memory."""
    codec, x = codec_for(spec), gaussian(2 * ODD.size)
    assert codec.encode(x[::2], ODD, SEED) == codec.encode(x[::2].copy(), ODD, SEED)


@pytest.mark.parametrize("spec", SEEDED)
def test_a_seed_of_another_length_is_a_mistake_of_the_caller(spec):
    """The seed never comes from the wire as it is, so this is no protocol error."""
    with pytest.raises(ValueError, match="16 bytes"):
        codec_for(spec).encode(gaussian(5), vectors(5), b"short")


@every_codec
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(spec, change):
    """One byte more or less is refused, and so is nothing at all."""
    codec = codec_for(spec)
    payload = codec.encode(gaussian(ODD.size), ODD, SEED)
    for wrong in (b"", payload[:change] if change < 0 else payload + b"\0"):
        with pytest.raises(CodecError, match="bytes, its codec and layout make"):
            codec.check(wrong, ODD)


@every_codec
@given(content=st.binary(max_size=600))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes_are_refused_or_decode(spec, content):
    """Whatever a device sends, check raises CodecError or nothing."""
    accepts_only_what_decodes(codec_for(spec), content, vectors(2, 33, 0))


@every_codec
@given(bits=st.lists(scale_bits, min_size=3, max_size=3), content=st.binary(min_size=200, max_size=200))
@example(bits=[0, 0, 0], content=b"\x00\x00\x81\x7f" * 50)  # signalling NaN
@settings(max_examples=150, deadline=None)
def test_whatever_is_accepted_decodes_to_finite_values(spec, bits, content):
    """Payloads of the right length with all kinds of numbers: accepted ones are finite, norm included."""
    codec, layout = codec_for(spec), vectors(2, 33, 0)
    head = np.array(bits, "<u4").tobytes()
    accepts_only_what_decodes(codec, (head + content)[: codec.largest(layout)], layout)


def accepts_only_what_decodes(codec, payload, layout):
    """Refused with CodecError, or decoded to finite values with a finite norm that is theirs."""
    try:
        codec.check(payload, layout)
    except CodecError:
        return
    decoded = decode(codec, payload, layout, SEED)
    assert np.isfinite(decoded).all()
    expected = np.linalg.norm(decoded.astype(np.float64))
    assert codec.norm(payload, layout, SEED) == pytest.approx(expected, rel=1e-5)


@every_codec
@given(sizes=sizes)
@settings(max_examples=30, deadline=None)
def test_the_norm_is_that_of_the_decoded_update(spec, sizes):
    """Within 1e-5, padded blocks included."""
    codec, layout = codec_for(spec), vectors(*sizes)
    payload = codec.encode(gaussian(layout.size), layout, SEED)
    expected = np.linalg.norm(decode(codec, payload, layout, SEED).astype(np.float64))
    norm = codec.norm(payload, layout, SEED)
    assert isinstance(norm, np.float32)
    assert norm == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spec", SPECS[:9])
@pytest.mark.parametrize("layout", [vectors(40_000), vectors(1024, 320, 10)], ids=["long", "padded"])
def test_the_expected_inflation_is_what_happens(spec, layout):
    """The norm of decoded updates exceeds the delta's by the stated factor, within 3 %."""
    codec, x = codec_for(spec), gaussian(layout.size)
    norms = [codec.norm(codec.encode(x, layout, seed_of(i)), layout, seed_of(i)) for i in range(40)]
    measured = np.sqrt(np.mean(np.square(norms))) / np.linalg.norm(x)
    assert measured == pytest.approx(codec.expected_inflation(layout), rel=0.03)
    assert codec.expected_inflation(layout) >= 1


def sparse():
    """Three entries in 1024."""
    x = np.zeros(1024, np.float32)
    x[[5, 300, 1001]] = [1.0, -0.7, 0.4]
    return x


def masked():
    """A Gaussian vector of which a fixed three quarters are zero."""
    x = gaussian(2000, 3)
    x[np.random.default_rng(4).random(2000) < 0.75] = 0
    return x


SHAPES = {
    "gaussian": gaussian(1500),
    "student": np.random.default_rng(1).standard_t(3, 1500).astype(np.float32),
    "sparse": sparse(),
    "masked": masked(),
    "short": gaussian(100, 2),
}


def test_only_float16_and_sparse_are_biased():
    """And say so; the test below holds all others to their word."""
    assert [spec for spec in SPECS if not codec_for(spec).unbiased] == ["float16", *SPECS[9:]]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if codec_for(spec).unbiased])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_error_over_many_updates_is_no_larger_than_chance(spec, shape):
    """Unbiased: the error of the mean of 1,000 decoded updates is its standard error."""
    codec, x, count = codec_for(spec), SHAPES[shape], 1000
    layout = vectors(len(x))
    total, energy = np.zeros(len(x)), 0.0
    for number in range(count):
        seed = seed_of(number)
        error = decode(codec, codec.encode(x, layout, seed), layout, seed).astype(np.float64) - x
        total += error
        energy += error @ error
    chance = np.sqrt(energy) / count
    assert np.linalg.norm(total / count) <= 1.25 * chance


@every_codec
def test_memory_is_two_mebibytes_beyond_input_and_output(spec):
    """Ten million parameters are encoded, checked, measured and decoded in cache-sized pieces."""
    codec, layout = codec_for(spec), TensorLayout.of([("w", [2500, 4000])])
    x = np.resize(gaussian(100_003), layout.size)
    tracemalloc.start()
    try:
        payload = codec.encode(x, layout, SEED)
        encoding = tracemalloc.get_traced_memory()[1] - len(payload)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        codec.check(payload, layout)
        codec.norm(payload, layout, SEED)
        for _ in codec.pieces(payload, layout, SEED):
            pass
        decoding = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert encoding <= 2 * MIB
    assert decoding <= 2 * MIB
