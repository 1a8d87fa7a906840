"""Chores: each for itself, and trouble means a rest."""

import sqlite3

import pytest

from edge_agent.chores import AFTER_TROUBLE_S, Chores
from fl_protocol.clock import ManualClock
from fl_protocol.errors import StorageError


class Work:
    """Says how long it can wait, or fails as it is told."""

    def __init__(self, wait: float) -> None:
        self.turns = 0
        self.wait = wait
        self.error: Exception | None = None

    def __call__(self) -> float:
        self.turns += 1
        if self.error is not None:
            raise self.error
        return self.wait


@pytest.fixture
def chores():
    """Two chores on a manual clock."""
    clock, first, second = ManualClock(5.0), Work(30.0), Work(40.0)
    return (
        Chores(clock, (first, second), {"first": lambda own: own[0](), "second": lambda own: own[1]()}),
        clock,
        first,
        second,
    )


def test_the_shortest_wait_counts(chores):
    """Each is done at every call."""
    both, _, first, second = chores
    assert both.work() == 30.0
    assert (first.turns, second.turns) == (1, 1)


@pytest.mark.parametrize("error", [StorageError("full"), OSError(28, "No space left on device")])
def test_one_that_fails_rests_and_the_others_go_on(chores, error):
    """A minute, however often it is asked; then it is tried again, and its trouble is over."""
    both, clock, first, second = chores
    first.error = error
    assert both.work() == 40.0
    for _ in range(5):
        assert both.work() <= 40.0
    assert (first.turns, second.turns) == (1, 6)
    assert both.trouble("first") == str(error)
    assert both.trouble("second") == ""
    assert both.failures == 1
    first.error = None
    clock.advance(AFTER_TROUBLE_S)
    assert both.work() == 30.0
    assert both.trouble("first") == ""


def test_a_chore_may_be_sent_to_rest(chores):
    """Where what it began fails later."""
    both, clock, first, _ = chores
    assert both.rest("first", StorageError("full")) == AFTER_TROUBLE_S
    clock.advance(AFTER_TROUBLE_S - 1)
    assert both.work() == 1.0
    assert first.turns == 0


def test_the_same_trouble_is_said_once(chores, caplog):
    """Counted every time."""
    both, clock, first, _ = chores
    first.error = StorageError("full")
    for _ in range(3):
        both.work()
        clock.advance(AFTER_TROUBLE_S)
    assert both.failures == 3
    assert len(caplog.records) == 1


def test_damage_is_not_waited_out(chores):
    """Only opening the outbox anew helps."""
    both, _, first, _ = chores
    first.error = StorageError("the outbox")
    first.error.__cause__ = sqlite3.DatabaseError("malformed")
    with pytest.raises(StorageError):
        both.work()


def test_a_defect_is_not_taken_for_trouble(chores):
    """What is nobody's disk ends the agent, and is seen."""
    both, _, first, _ = chores
    first.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        both.work()
