"""Bodies and fields: bounded reading, and numbers as they travel."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import MessageError
from fl_protocol.fields import MAX_INTEGER, Fields, compact, pack, unpack


def test_absent_and_nil_are_the_same():
    """``None`` is left out when packing, and read like a missing key."""
    assert pack({"a": None, "b": 1}) == pack({"b": 1})
    fields = Fields({"a": None})
    assert "a" not in fields
    assert fields.integer("a", default=7) == 7
    assert fields.maybe("a", fields.integer) is None


def test_floats_travel_as_float32():
    """Five bytes, whatever they were."""
    assert len(pack({"a": 0.1})) == 1 + 2 + 5
    assert unpack(pack({"a": 0.1}), limit=100).number("a") == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize("value", [1e39, -1e300, 2**64])
def test_a_number_that_cannot_travel_is_said_when_packing(value):
    """In our own error, not in a library's."""
    with pytest.raises(MessageError, match="too large"):
        pack({"a": value})


@given(st.dictionaries(st.text(max_size=5), st.floats() | st.integers().map(float), max_size=6))
def test_compact_numbers_are_finite_and_stable(numbers):
    """Compacting again, or after a journey, changes nothing."""
    compacted = compact(numbers)
    assert compact(compacted) == compacted
    assert list(compacted) == sorted(compacted)
    read = unpack(pack({"n": compacted}), limit=1000).numbers("n")
    assert read == compacted
    assert pack({"n": compact(read)}) == pack({"n": compacted})
    assert all(math.isfinite(value) for value in read.values())


@pytest.mark.parametrize("value", [2**53, -(2**53), 10**400, math.inf, math.nan, "1", True, None, [1]])
def test_what_is_no_number_of_ours_is_refused(value):
    """JSON and msgpack know more numbers than we let in."""
    with pytest.raises(MessageError, match="'a'"):
        Fields({"a": value}).number("a")


@pytest.mark.parametrize("value", [-1, 2**53, 1.0, "1", True, b"1", None])
def test_what_is_no_integer_of_ours_is_refused(value):
    """Below 2**53, so that every language reads it alike; and no float that happens to be whole."""
    with pytest.raises(MessageError, match="'a'"):
        Fields({"a": value}).integer("a")
    assert Fields({"a": MAX_INTEGER}).integer("a") == MAX_INTEGER


def test_octets_texts_flags_lists_and_maps_are_checked():
    """Type and length, with the key in the message."""
    fields = Fields({"a": b"abc", "t": "text", "f": True, "l": [1, 2], "m": {"x": {"y": 1}}, "n": {"x": 1.5}})
    assert fields.octets("a", length=3) == b"abc"
    assert fields.text("t") == "text"
    assert fields.flag("f") is True
    assert fields.array("l") == [1, 2]
    assert fields.mapping("m")["x"].integer("y") == 1
    assert fields.numbers("n") == {"x": 1.5}
    assert Fields({"n": {"x" * 128: 1}}).numbers("n")
    for wrong in (
        lambda: fields.octets("a", length=4),
        lambda: fields.octets("a", longest=2),
        lambda: fields.octets("t"),
        lambda: fields.text("t", longest=3),
        lambda: fields.text("a"),
        lambda: fields.flag("l"),
        lambda: fields.array("l", most=1),
        lambda: fields.array("t"),
        lambda: fields.mapping("m", most=0),
        lambda: fields.numbers("n", most=0),
        lambda: Fields({"n": {"x" * 129: 1}}).numbers("n"),
        lambda: fields.mapping("n"),
        lambda: fields.numbers("m"),
        lambda: fields.group("t"),
        lambda: fields.octets("missing"),
    ):
        with pytest.raises(MessageError):
            wrong()


@pytest.mark.parametrize("body", [None, [], 1, "text", {1: 2}, {b"a": 1}])
def test_a_body_is_a_map_with_text_keys(body):
    """Nothing else."""
    with pytest.raises(MessageError, match="text keys"):
        Fields(body)
