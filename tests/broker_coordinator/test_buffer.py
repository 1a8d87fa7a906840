"""When a version closes."""

import pytest

from broker_coordinator.buffer import Buffer


@pytest.mark.parametrize(
    ("count", "waited", "reason"),
    [(0, 99, None), (9, 1, None), (10, 0, "size"), (12, 0, "size"), (2, 5, "deadline"), (1, 5, None)],
)
def test_it_closes_by_size_or_by_deadline(count, waited, reason):
    """K updates close at once; fewer wait for the deadline, and it for ``min_updates``."""
    assert Buffer(size=10, flush_after_s=5.0, min_updates=2).closes(count, waited) == reason


def test_it_says_when_the_deadline_comes():
    """None where only more updates help; never negative."""
    buffer = Buffer(size=10, flush_after_s=5.0)
    assert buffer.closes_in(0, 0.0) is None
    assert buffer.closes_in(1, 2.0) == 3.0
    assert buffer.closes_in(1, 9.0) == 0.0
    assert Buffer(size=10).closes_in(9, 99.0) is None
