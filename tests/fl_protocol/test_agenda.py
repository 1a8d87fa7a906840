"""The agenda of a virtual fleet: moments in order, and of one moment what was planned first."""

import random

from fl_protocol.agenda import Agenda


def test_events_happen_by_moment_and_then_as_they_were_planned():
    """Many events of few moments come out as a sorted list of all of them would."""
    rng = random.Random(5)
    agenda, happened = Agenda(), []
    planned = [(float(rng.randrange(20)), number) for number in range(300)]
    for at, number in planned:
        agenda.plan(at, lambda number=number: happened.append(number))
    assert agenda.happen(9.0) + agenda.happen(30.0) == 300
    assert happened == [number for _, number in sorted(planned)]
    assert agenda.next_due() is None


def test_what_an_event_plans_for_now_happens_too():
    """A moment ends when nothing joins it any more; what is due earlier goes before the rest of it."""
    agenda, happened = Agenda(), []

    def first():
        happened.append("first")
        agenda.plan(2.0, lambda: happened.append("joined"))
        agenda.plan(1.0, lambda: happened.append("earlier"))

    agenda.plan(2.0, first)
    agenda.plan(2.0, lambda: happened.append("second"))
    agenda.plan(3.0, lambda: happened.append("later"))
    assert agenda.happen(2.0) == 4
    assert happened == ["first", "earlier", "second", "joined"]
    assert agenda.next_due() == 3.0


def test_an_event_may_clear_the_agenda():
    """A broker that dies in the middle of its deliveries makes none of the others."""
    agenda, happened = Agenda(), []
    agenda.plan(1.0, agenda.clear)
    agenda.plan(1.0, lambda: happened.append("lost"))
    assert agenda.happen(5.0) == 1
    agenda.plan(2.0, lambda: happened.append("new"))
    assert (agenda.happen(5.0), happened) == (1, ["new"])


def test_an_event_may_let_events_happen():
    """A turn within a turn takes what is due, once."""
    agenda, happened = Agenda(), []
    agenda.plan(1.0, lambda: happened.append(agenda.happen(1.0)))
    agenda.plan(1.0, lambda: happened.append("once"))
    agenda.plan(1.0, lambda: happened.append("twice"))
    agenda.happen(1.0)
    assert happened == ["once", "twice", 2]


def test_what_is_left_when_time_is_up_stays_due():
    """A clock that must look after sockets in between comes back for the rest, in order."""
    agenda, happened = Agenda(), []
    for number in range(5):
        agenda.plan(1.0, lambda number=number: happened.append(number))
    assert agenda.happen(1.0, lambda: len(happened) < 2) == 2
    assert (agenda.next_due(), happened) == (1.0, [0, 1])
    assert agenda.happen(1.0) == 3
    assert happened == [0, 1, 2, 3, 4]
