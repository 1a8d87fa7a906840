"""The downlink codec: published weights as 8-bit rows."""

import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.codec import decode_model, encode_model, model_size
from fl_protocol.errors import CodecError, LayoutError
from fl_protocol.layout import TensorLayout

LAYOUT = TensorLayout.of(
    [("w", [10, 32]), ("n", [100, 3]), ("b", [255]), ("f", [260]), ("k", [8, 3, 3, 5]), ("s", [])]
)
shapes = st.lists(st.lists(st.integers(1, 40), max_size=3), min_size=1, max_size=4)


def weights_of(layout, seed=0):
    """float32[n] of very different rows."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(layout.size) * np.exp(random.standard_normal(layout.size))).astype(
        np.float32
    )


@given(shapes=shapes)
@settings(max_examples=60, deadline=None)
def test_content_has_the_length_that_the_layout_says(shapes):
    """Any shapes; large tensors take little more than a byte per weight, small ones four."""
    layout = TensorLayout.of((f"t{i}", shape) for i, shape in enumerate(shapes))
    content = encode_model(weights_of(layout), layout)
    assert len(content) == model_size(layout)
    assert len(content) <= sum(
        t.size + t.size // 8 + 4 if t.size >= 256 else 4 * t.size for t in layout.tensors
    )
    assert decode_model(content, layout).shape == (layout.size,)


def test_small_tensors_are_exact_and_large_ones_within_half_a_step():
    """A step is a 127th of the row's largest magnitude; rows are at least 32 elements long."""
    x = weights_of(LAYOUT)
    y = decode_model(encode_model(x, LAYOUT), LAYOUT)
    for (tensor, start), row in zip(LAYOUT.offsets(), (32, 33, 0, 32, 45, 0), strict=True):
        before, after = x[start : start + tensor.size], y[start : start + tensor.size]
        if not row:
            assert before.tobytes() == after.tobytes()
        for first in range(0, tensor.size, row or tensor.size):
            part = slice(first, first + (row or tensor.size))
            step = np.abs(before[part]).max() / 127
            assert np.abs(before[part] - after[part]).max() <= 0.5001 * step


def test_decoded_weights_encode_to_themselves():
    """Publishing a published model again changes nothing."""
    once = decode_model(encode_model(weights_of(LAYOUT), LAYOUT), LAYOUT)
    assert decode_model(encode_model(once, LAYOUT), LAYOUT).tobytes() == once.tobytes()


def test_rows_of_zeros_and_of_next_to_nothing_decode_to_zeros():
    """A scale is never denormal."""
    for x in (np.zeros(LAYOUT.size, np.float32), np.full(LAYOUT.size, 1e-40, np.float32)):
        assert not decode_model(encode_model(x, LAYOUT), LAYOUT)[:300].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -(2.0**101)])
@pytest.mark.parametrize("where", [0, 700, -1])
def test_a_diverged_model_is_not_published(bad, where):
    """In a coded tensor and in a small one."""
    x = weights_of(LAYOUT)
    x[where] = bad
    with pytest.raises(CodecError, match="the model holds a value that is not finite"):
        encode_model(x, LAYOUT)


def test_a_vector_of_another_length_is_refused():
    """Only float32[n] is encoded."""
    with pytest.raises(LayoutError, match="expected float32"):
        encode_model(np.zeros(3, np.float32), LAYOUT)


@given(
    numbers=st.lists(st.integers(0, 2**32 - 1), min_size=11, max_size=11),
    codes=st.binary(min_size=320, max_size=320),
)
@settings(deadline=None)
def test_content_is_refused_or_decodes_to_finite_weights(numbers, codes):
    """Whatever bits stand for scales, weights and codes."""
    layout = TensorLayout.of([("w", [10, 32]), ("b", [1])])
    with suppress(CodecError):
        assert np.isfinite(decode_model(np.array(numbers, "<u4").tobytes() + codes, layout)).all()


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_or_decode(content):
    """Nothing but CodecError."""
    with suppress(CodecError):
        decode_model(content, TensorLayout.of([("w", [256]), ("b", [1])]))


def test_memory_is_two_mebibytes_beyond_input_and_output():
    """Ten million weights are coded in cache-sized groups of rows."""
    layout = TensorLayout.of([("w", [2500, 4000])])
    x = np.resize(weights_of(LAYOUT), layout.size)
    tracemalloc.start()
    try:
        content = encode_model(x, layout)
        encoding = tracemalloc.get_traced_memory()[1] - len(content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        decode_model(content, layout)
        decoding = tracemalloc.get_traced_memory()[1] - before - 4 * layout.size
    finally:
        tracemalloc.stop()
    assert encoding <= 2 << 20
    assert decoding <= 2 << 20
