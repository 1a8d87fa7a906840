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


@pytest.mark.parametrize(
    ("buffer", "waited", "wait"),
    [
        (Buffer(size=10, flush_after_s=60.0, by_round=True), 0.0, 20.0),
        (Buffer(size=10, flush_after_s=60.0, by_round=True), 45.0, 10.0),
        (Buffer(size=10, flush_after_s=60.0, by_round=True), 99.0, 10.0),
        (Buffer(size=10, flush_after_s=1200.0, by_round=True), 1190.0, 30.0),
        (Buffer(size=10, flush_after_s=7200.0, by_round=True), 0.0, 600.0),
        (Buffer(size=10, by_round=True), 9.0, 60.0),
        (Buffer(size=10, flush_after_s=60.0), 59.0, 60.0),
        (Buffer(size=10), 9.0, 600.0),
    ],
)
def test_what_could_not_be_taken_comes_again_before_its_round_is_over(buffer, waited, wait):
    """A device waits up to half as long again; where a later version takes it too, it need not hurry."""
    assert buffer.comes_again_s(waited) == wait


@pytest.mark.parametrize(
    ("count", "set_aside", "waited", "reason"),
    [(0, 2, 4.9, None), (0, 2, 5.0, "quarantine"), (0, 1, 99.0, None), (1, 1, 999.0, None)],
)
def test_what_was_set_aside_counts_as_come(count, set_aside, waited, reason):
    """Towards the least that a deadline takes, where nothing is folded; without a deadline towards the size,
    after ten minutes."""
    buffer = Buffer(size=10, flush_after_s=5.0, min_updates=2)
    assert buffer.closes(count, waited, set_aside) == reason
    assert (buffer.closes_in(count, waited, set_aside) == 0.0) == (reason is not None)
    endless = Buffer(size=2)
    expected = "quarantine" if reason and waited >= 600.0 else None
    assert endless.closes(count, waited, set_aside) == expected
    assert endless.closes(0, 600.0, 2) == "quarantine"


def test_it_says_when_the_deadline_comes():
    """None where only more updates help; never negative."""
    buffer = Buffer(size=10, flush_after_s=5.0)
    assert buffer.closes_in(0, 0.0) is None
    assert buffer.closes_in(1, 2.0) == 3.0
    assert buffer.closes_in(1, 9.0) == 0.0
    assert Buffer(size=10).closes_in(9, 99.0) is None
