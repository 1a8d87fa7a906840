"""The codec sparse: what it keeps, what it leaves out, and that no payload gets past its own consistency."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.codec import codec_for, codec_seed, decode
from fl_protocol.codec.gaps import HIGHEST_SHIFT, cheapest_shift, gaps_of, positions_of, read_quotients, unary
from fl_protocol.codec.largest import fitted_levels, largest_positions
from fl_protocol.errors import CodecError
from fl_protocol.layout import TensorLayout

SEED = codec_seed(bytes(16))
ENTRY = struct.Struct("<fHHB")


def layout_of(*sizes):
    """One-dimensional tensors."""
    return TensorLayout.of((f"t{i}", [size]) for i, size in enumerate(sizes))


def payload_of(*entries, planes=b""):
    """A payload by hand: ``(scale, count, octets of quotients, shift)`` of each segment, and the planes."""
    return b"".join(ENTRY.pack(*entry) for entry in entries) + planes


def heavy(size, seed=0):
    """float32[size] with heavy tails."""
    return np.random.default_rng(seed).standard_t(3, size).astype(np.float32)


@pytest.mark.parametrize("size", [1, 5, 300, 2049, 65_536])
@pytest.mark.parametrize("kind", ["heavy", "equal", "zeros", "few"])
@pytest.mark.parametrize("keep", [0.001, 0.05, 0.5])
def test_the_largest_are_those_that_sorting_finds(size, kind, keep):
    """Of equal ones the first; zeros never; whatever the sample foretold."""
    values = np.abs(heavy(size, size))
    if kind == "equal":
        values = np.round(values)
    elif kind == "zeros":
        values[:] = 0
    elif kind == "few":
        values[np.arange(size) % 17 != 3] = 0
    count = max(1, int(keep * size))
    expected = np.lexsort((np.arange(size), -values))[:count]
    expected = np.sort(expected[values[expected] > 0])
    assert largest_positions(values, count).tolist() == expected.tolist()


@pytest.mark.parametrize("highest", [1, 2, 8, 128])
@pytest.mark.parametrize("kind", ["heavy", "equal", "one"])
def test_what_is_left_is_shorter_than_it_was(highest, kind):
    """The error of the levels is at right angles to them: error feedback contracts with every update."""
    values = {"heavy": np.abs(heavy(500)), "equal": np.full(500, 0.3, np.float32), "one": np.float32([7])}[
        kind
    ]
    levels, scale = fitted_levels(values, highest)
    assert levels.min() >= 0
    assert levels.max() <= highest
    left = values - levels * scale
    assert left @ left < values @ values
    assert abs(left @ levels) < 1e-3 * scale * (levels @ levels)
    if kind != "heavy":
        assert np.allclose(left, 0, atol=1e-6)


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=40, unique=True))
def test_positions_survive_their_gaps(found):
    """At every shift; and none is cheaper than the cheapest, whose bits are as many as it says."""
    positions = np.array(sorted(found))
    gaps = gaps_of(positions)
    assert positions_of(gaps).tolist() == positions.tolist()
    cheapest = cheapest_shift(gaps)
    for shift in range(HIGHEST_SHIFT + 1):
        plane = unary(gaps >> shift)
        assert read_quotients(plane, len(gaps)).tolist() == (gaps >> shift).tolist()
        bits = len(gaps) * (1 + shift) + int((gaps >> shift).sum())
        assert cheapest.bits + len(gaps) * cheapest.shift <= bits
    assert len(unary(gaps >> cheapest.shift)) == cheapest.octets


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("keep", [0.01, 0.5])
def test_only_the_largest_travel_and_nearly_as_they_are(bits, keep):
    """At most the share of each tensor; no other value, no other sign."""
    layout = layout_of(70_000, 100, 3)
    x = heavy(layout.size)
    codec = codec_for(f"sparse(bits={bits},keep={keep})")
    decoded = decode(codec, codec.encode(x, layout, SEED), layout, SEED)
    sent = np.flatnonzero(decoded)
    assert 0.6 * keep * layout.size < len(sent) <= keep * layout.size + 4
    assert np.abs(x[decoded == 0]).mean() < np.abs(x[sent]).mean()
    assert (np.sign(decoded[sent]) == np.sign(x[sent])).all()
    # nothing that is not among the largest of its segment
    assert np.abs(x[sent][sent < 65_536]).min() >= np.sort(np.abs(x[:65_536]))[-int(keep * 65_536) - 1]


def test_an_update_of_few_elements_costs_few_bytes():
    """Where most of a table was never looked up, its zeros cost nothing: that is what the codec is for."""
    layout = TensorLayout.of([("table", [5000, 64])])
    x = np.zeros((5000, 64), np.float32)
    x[[3, 700, 701, 4242]] = heavy(256).reshape(4, 64)
    codec = codec_for("sparse(bits=4,keep=0.05)")
    payload = codec.encode(x.ravel(), layout, SEED)
    assert len(payload) < 64 * 4 * 2
    error = decode(codec, payload, layout, SEED) - x.ravel()
    assert error @ error < 0.05 * (x.ravel() @ x.ravel())
    assert not error[x.ravel() == 0].any()


def test_many_rounds_of_feedback_send_everything():
    """With what is left added to the next, the sum of what was sent follows the sum of all deltas: what is
    missing stays bounded. Without it, small elements never arrive."""
    layout, codec = layout_of(2000), codec_for("sparse(bits=2,keep=0.05)")
    delta = heavy(2000)
    left = np.zeros(2000, np.float32)
    sent, alone = np.zeros(2000), np.zeros(2000)
    rounds = 400
    for _ in range(rounds):
        decoded = decode(codec, codec.encode(delta + left, layout, SEED), layout, SEED)
        left = delta + left - decoded
        sent += decoded
        alone += decode(codec, codec.encode(delta, layout, SEED), layout, SEED)
    assert np.linalg.norm(sent / rounds - delta) < 0.1 * np.linalg.norm(delta)
    assert np.linalg.norm(alone / rounds - delta) > 0.4 * np.linalg.norm(delta)


def lone(*entry, planes=b""):
    """A payload for ``TWO``, in which the second tensor is empty."""
    return payload_of(entry, (0.0, 0, 0, 0), planes=planes)


ONE = codec_for("sparse(bits=1,keep=0.05)")
TWO = layout_of(40, 4000)
GOOD = lone(0.5, 2, 1, 1, planes=bytes([0b101, 0b1010]))
"""Quotients 0 and 1, remainders 0 and 1, signs + and -."""


def test_a_payload_by_hand_decodes_as_the_text_says():
    """Positions 0 and 4: no gap, then one of 1 * 2 + 1."""
    decoded = decode(ONE, GOOD, TWO, SEED)
    assert {int(i): float(decoded[i]) for i in np.flatnonzero(decoded)} == {0: 0.5, 4: -0.5}


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lone(1.0, 3, 1, 1, planes=bytes([0b10101, 0])), "entry 0"),  # one more than the share
        (lone(0.0, 2, 1, 1, planes=bytes(2)), "entry 0"),  # elements without a scale
        (lone(1.0, 0, 0, 0), "entry 0"),  # a scale without elements
        (lone(0.0, 0, 0, 1), "entry 0"),
        (lone(0.0, 0, 1, 0, planes=bytes(1)), "entry 0"),
        (lone(1.0, 2, 1, 16, planes=bytes(6)), "entry 0"),  # a shift beyond the highest
        (lone(1.0, 2, 4, 1, planes=bytes([0, 0, 0, 3, 0])), "entry 0"),  # more octets than there can be
        (lone(-1.0, 2, 1, 1, planes=bytes(2)), "scale 0"),
        (lone(float("nan"), 2, 1, 1, planes=bytes(2)), "scale 0"),
        (GOOD[:-1], "bytes, its codec and layout make"),
        (GOOD + b"\0", "bytes, its codec and layout make"),
        (GOOD + bytes(2000), "bytes, its codec and layout make"),
        (b"", "bytes, its codec and layout make"),
        (lone(1.0, 2, 1, 1, planes=bytes([0b1, 0])), "last of 2 positions"),  # one quotient
        (lone(1.0, 2, 1, 1, planes=bytes([0b111, 0])), "last of 2 positions"),  # three
        (lone(1.0, 2, 2, 1, planes=bytes([0b11, 0, 0])), "last of 2 positions"),  # an idle octet
        (lone(1.0, 2, 1, 1, planes=bytes([0b101, 0x10])), "filling bit"),
        (lone(1.0, 2, 1, 5, planes=bytes([0b101, 0, 0])), None),  # 0 and 1 + 32
        (lone(1.0, 2, 1, 5, planes=bytes([0b101, 0b10001000, 0])), "position 43 in a segment of 40"),
    ],
)
def test_a_payload_that_contradicts_itself_is_refused(spoilt, message):
    """Each fault alone, and before anything is decoded."""
    if message is None:
        ONE.check(spoilt, TWO)
        return
    with pytest.raises(CodecError, match=message):
        ONE.check(spoilt, TWO)
    with pytest.raises(CodecError):
        ONE.check_all([GOOD, spoilt], TWO)


SOME = layout_of(2, 700, 33)


@st.composite
def hostile(draw):
    """Payloads that have what a table needs to be believed, and anything behind it."""
    entries, planes = [], b""
    for size in (2, 700, 33):
        count = draw(st.integers(0, -(-size // 4) + draw(st.integers(0, 1))))
        shift = draw(st.integers(0, 16)) if count else draw(st.sampled_from([0, 0, 0, 1]))
        octets = draw(st.integers(0, -(-(count + (size - count >> min(shift, 15))) // 8))) if count else 0
        scale = draw(st.sampled_from([0.0, 2.0**-100, 1e-3, 2.0**100, 2.0**101, -1.0]))
        entries.append((scale, count, octets, shift))
        codes = -(-count * (shift + 3) // 8)
        planes += draw(st.binary(min_size=octets + codes, max_size=octets + codes))
    return payload_of(*entries, planes=planes)


@given(hostile())
@settings(max_examples=300, deadline=None)
def test_a_hostile_payload_is_refused_or_decodes_within_its_segments(payload):
    """Never another exception, never a value that is not finite."""
    accepts_only_what_decodes(payload)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_good_payload_with_some_octets_changed_is_refused_or_decodes(data):
    """As a device would send it whose memory is failing."""
    x = heavy(SOME.size, data.draw(st.integers(0, 3)))
    payload = bytearray(codec_for("sparse(bits=3,keep=0.25)").encode(x, SOME, SEED))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    accepts_only_what_decodes(bytes(payload))


def accepts_only_what_decodes(payload):
    """Refused with CodecError; or decoded to finite values, no more than are kept, whose norm is theirs."""
    codec = codec_for("sparse(bits=3,keep=0.25)")
    try:
        codec.check(payload, SOME)
    except CodecError:
        return
    decoded = decode(codec, payload, SOME, SEED)
    assert np.isfinite(decoded).all()
    assert codec.norm(payload, SOME, SEED) == pytest.approx(
        np.linalg.norm(decoded.astype(np.float64)), rel=1e-5
    )
    for start, size in ((0, 2), (2, 700), (702, 33)):
        assert np.count_nonzero(decoded[start : start + size]) <= -(-size // 4)


@given(st.integers(1, 8), st.floats(1e-4, 0.5), st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.3, 1.0]))
@settings(max_examples=150, deadline=None)
def test_no_payload_is_longer_than_the_bound(bits, keep, seed, density):
    """However its elements lie: the coordinator refuses what is longer."""
    layout = layout_of(3000, 17, 1)
    rng = np.random.default_rng(seed)
    x = heavy(layout.size, seed) * (rng.random(layout.size) < density)
    if seed % 2:
        x = np.sort(x)
    codec = codec_for(f"sparse(bits={bits},keep={keep!r})")
    payload = codec.encode(x.astype(np.float32), layout, SEED)
    assert len(payload) <= codec.largest(layout)
    codec.check(payload, layout)
