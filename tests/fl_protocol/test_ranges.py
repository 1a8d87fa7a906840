"""Byte ranges behave as the sets they stand for."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import MessageError
from fl_protocol.ranges import MAX_RANGES, ByteRanges

SIZE = 60
PAIRS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=12)


def covered(ranges: ByteRanges) -> set[int]:
    """The bytes in it."""
    return {byte for start, end in ranges for byte in range(start, end)}


def normal(ranges: ByteRanges) -> bool:
    """Sorted, not empty, and with a gap between any two."""
    bounds = [bound for pair in ranges for bound in pair]
    return all(left < right for left, right in itertools.pairwise(bounds))


@given(PAIRS)
def test_any_pairs_become_one_normal_form(pairs):
    """The same bytes, counted once."""
    ranges = ByteRanges.of(pairs)
    expected = {byte for start, end in pairs for byte in range(start, end)}
    assert covered(ranges) == expected
    assert ranges.bytes == len(expected)
    assert normal(ranges)
    assert ByteRanges.of(ranges) == ranges


@given(PAIRS, st.integers(0, SIZE), st.integers(0, SIZE))
def test_adding_is_union(pairs, start, end):
    """In any order."""
    ranges = ByteRanges.of(pairs)
    assert covered(ranges.add(start, end)) == covered(ranges) | set(range(start, end))
    assert ranges.add(start, end) == ByteRanges.of([*pairs, (start, end)])


@given(PAIRS, st.integers(0, SIZE))
def test_missing_is_the_complement(pairs, size):
    """What is here and what is missing make the whole."""
    ranges = ByteRanges.of(pairs)
    missing = ranges.missing(size)
    assert covered(missing) == set(range(size)) - covered(ranges)
    assert normal(missing)


@given(PAIRS, st.integers(-3, SIZE + 3))
def test_first_takes_the_lowest_bytes(pairs, most):
    """Within a byte credit."""
    ranges = ByteRanges.of(pairs)
    assert covered(ranges.first(most)) == set(sorted(covered(ranges))[: max(most, 0)])


@given(PAIRS)
def test_ranges_travel_as_a_flat_list(pairs):
    """And come back equal."""
    ranges = ByteRanges.of(pairs)
    assert ByteRanges.from_body(ranges.to_body()) == ranges


def test_a_receipt_lists_a_bounded_number_of_ranges():
    """The rest follows when these are filled."""
    ranges = ByteRanges.of((2 * index, 2 * index + 1) for index in range(MAX_RANGES + 50))
    assert len(ranges.to_body()) == 2 * MAX_RANGES
    assert ByteRanges.from_body(ranges.to_body()).ranges == ranges.ranges[:MAX_RANGES]


@given(st.lists(st.integers() | st.floats() | st.text() | st.booleans() | st.none(), max_size=8))
def test_any_list_is_read_or_refused(flat):
    """Whatever was read is in normal form."""
    with contextlib.suppress(MessageError):
        assert normal(ByteRanges.from_body(flat))


@pytest.mark.parametrize(
    "flat", [[0], [5, 3], [1, 1], [0, 5, 5, 8], [-1, 3], [0, True], [0, 2**53], [0.0, 1]]
)
def test_what_is_not_in_normal_form_is_refused(flat):
    """One spelling for each set."""
    with pytest.raises(MessageError):
        ByteRanges.from_body(flat)
