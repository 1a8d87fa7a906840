"""Small models are encoded in few calls: what comes out is what encoding block by block gives."""

import numpy as np
import pytest

from fl_protocol.codec import codec_for, eden, eden_rows
from fl_protocol.codec.blocks import payload_parts
from fl_protocol.errors import CodecError
from fl_protocol.layout import TensorLayout

LAYOUT = TensorLayout.of([("w", (32, 70)), ("b", (32,)), ("v", (10, 32)), ("c", (10,))])
SEEDS = [bytes([number]) * 16 for number in range(1, 6)]


def _deltas() -> np.ndarray:
    deltas = np.random.default_rng(5).normal(size=(len(SEEDS), LAYOUT.size)).astype(np.float32)
    deltas[1] = 0
    deltas[2, 3:] = 0
    return deltas


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_all_at_once_is_block_by_block(monkeypatch, bits, keep):
    """Codes are the same; a scale may differ in its last digit, for its sums are taken in another order."""
    codec = eden.Eden(bits=bits, keep=keep)
    deltas = _deltas()
    together = eden_rows.encode_rows(deltas, LAYOUT, SEEDS, bits=bits, keep=keep)
    assert together == [codec.encode(*one) for one in zip(deltas, [LAYOUT] * 5, SEEDS, strict=True)]
    monkeypatch.setattr(eden, "is_small", lambda layout, keep: False)
    head = 4 * payload_parts(LAYOUT, keep)[0]
    for delta, seed, payload in zip(deltas, SEEDS, together, strict=True):
        slowly = codec.encode(delta, LAYOUT, seed)
        assert payload[head:] == slowly[head:]
        scales, exact = (np.frombuffer(one[:head], "<f4") for one in (payload, slowly))
        np.testing.assert_allclose(scales, exact, rtol=1e-6)


def test_a_value_that_is_not_finite_is_refused_wherever_it_is():
    """As for large models."""
    deltas = _deltas()
    deltas[4, -1] = np.inf
    with pytest.raises(CodecError, match="not finite"):
        eden_rows.encode_rows(deltas, LAYOUT, SEEDS, bits=1, keep=1.0)
    with pytest.raises(CodecError, match="not finite"):
        codec_for("eden(bits=1)").encode(deltas[4], LAYOUT, SEEDS[4])
