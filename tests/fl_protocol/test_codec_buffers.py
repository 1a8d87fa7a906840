"""Buffers behind the weights: one mechanism under every codec, and nothing that a codec does reaches them."""

import numpy as np
import pytest

from fl_protocol.codec import HIGHEST_BUFFER, codec_for, codec_seed, decode, decode_model, encode_model
from fl_protocol.errors import CodecError
from fl_protocol.layout import TensorLayout

SPECS = ("float32", "int8", "eden(bits=1)", "eden(bits=1,keep=0.25)")
WEIGHTS = [("w", (40, 40)), ("b", (7,))]
LAYOUT = TensorLayout.of([*WEIGHTS, ("mean", (5,), "buffer"), ("var", (65_540,), "buffer")])
PLAIN = TensorLayout.of(WEIGHTS)
SEED = codec_seed(bytes(16))

every_codec = pytest.mark.parametrize("spec", SPECS)


def delta(seed: int = 0) -> np.ndarray:
    """float32[n]: weights as updates have them, buffers of many magnitudes."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(LAYOUT.weight_size) * 1e-2
    buffers = rng.standard_normal(LAYOUT.buffer_size) * 10.0 ** rng.integers(-6, 6, LAYOUT.buffer_size)
    return np.concatenate([weights, buffers]).astype(np.float32)


@every_codec
def test_weights_are_coded_as_if_there_were_no_buffers(spec):
    """The payload of the weights alone is the beginning, the size says how long the rest is."""
    codec, x = codec_for(spec), delta()
    payload = codec.encode(x, LAYOUT, SEED)
    alone = codec.encode(x[: PLAIN.size], PLAIN, SEED)
    assert payload.startswith(alone)
    assert len(payload) == codec.largest(LAYOUT) == codec.largest(PLAIN) + 2 * LAYOUT.buffer_size
    decoded = decode(codec, payload, LAYOUT, SEED)
    assert decoded[: PLAIN.size].tobytes() == decode(codec, alone, PLAIN, SEED).tobytes()
    assert codec.norm(payload, LAYOUT, SEED) == codec.norm(alone, PLAIN, SEED)
    assert codec.expected_inflation(LAYOUT) == codec.expected_inflation(PLAIN)


@every_codec
def test_buffers_come_back_as_the_nearest_float16(spec):
    """None is masked, rotated or drawn: what comes back is the delta to 11 bits."""
    codec, x = codec_for(spec), delta(1)
    buffers = x[LAYOUT.weight_size :]
    decoded = decode(codec, codec.encode(x, LAYOUT, SEED), LAYOUT, SEED)[LAYOUT.weight_size :]
    limited = np.clip(buffers, -HIGHEST_BUFFER, HIGHEST_BUFFER)
    assert np.abs(buffers).max() > HIGHEST_BUFFER
    assert (np.abs(decoded - limited) <= np.maximum(np.abs(limited) * 2.0**-11, 2.0**-25)).all()


@every_codec
def test_pieces_cover_buffers_too_and_hold_no_weights_with_them(spec):
    """In order, at most 65,536 at a time, each piece on one side of the border."""
    codec = codec_for(spec)
    payload, end = codec.encode(delta(), LAYOUT, SEED), 0
    for start, values in codec.pieces(payload, LAYOUT, SEED):
        assert start == end
        assert values.dtype == np.float32
        assert 0 < len(values) <= 65_536
        end = start + len(values)
        assert end <= LAYOUT.weight_size or start >= LAYOUT.weight_size
        values.fill(0)
    assert end == LAYOUT.size


@every_codec
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF])
@pytest.mark.parametrize("place", [1, LAYOUT.buffer_size])
def test_a_buffer_that_is_not_finite_is_refused(spec, bits, place):
    """Infinite or NaN, the first and the last."""
    codec = codec_for(spec)
    payload = bytearray(codec.encode(np.zeros(LAYOUT.size, np.float32), LAYOUT, SEED))
    at = len(payload) - 2 * place
    payload[at : at + 2] = bits.to_bytes(2, "little")
    with pytest.raises(CodecError, match="buffer"):
        codec.check(bytes(payload), LAYOUT)


@every_codec
def test_a_payload_without_its_buffers_is_refused(spec):
    """And one with buffers where the layout has none."""
    codec = codec_for(spec)
    payload = codec.encode(delta(), LAYOUT, SEED)
    for wrong in (payload[: codec.largest(PLAIN)], payload[:-2], payload + b"\0\0", payload[:3], b""):
        with pytest.raises(CodecError):
            codec.check(wrong, LAYOUT)
    with pytest.raises(CodecError):
        codec.check(payload, PLAIN)


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -(2.0**101)])
def test_statistics_that_are_not_finite_are_not_encoded(spec, bad):
    """A diverged training ends in an error on the device."""
    x = delta()
    x[-1] = bad
    with pytest.raises(CodecError, match="buffers"):
        codec_for(spec).encode(x, LAYOUT, SEED)


def test_published_buffers_are_exact():
    """However large the buffer is, it travels down as float32."""
    layout = TensorLayout.of([("w", (40, 40)), ("var", (40, 40), "buffer")])
    x = np.random.default_rng(2).standard_normal(layout.size).astype(np.float32)
    decoded = decode_model(encode_model(x, layout), layout)
    assert decoded[layout.weight_size :].tobytes() == x[layout.weight_size :].tobytes()
    assert not np.array_equal(decoded[: layout.weight_size], x[: layout.weight_size])
