"""The bounded queues on both sides of the connection."""

import sys
import threading
from collections import deque

import pytest

from broker_coordinator import inbox as inbox_module
from broker_coordinator import outgoing as outgoing_module
from broker_coordinator.inbox import Inbox
from broker_coordinator.outgoing import Outgoing
from fl_protocol.transport import Connected, Received


def message(token, size=1):
    return Received("t", bytes(size), False, token)


def test_the_inbox_drops_counts_and_acknowledges_what_is_too_much():
    """By bytes; a dropped message must not hold a place in the broker's window."""
    rejected = []
    inbox = Inbox(100, rejected.append)
    inbox.put(message(1, 60))
    inbox.put(message(2, 60))
    inbox.put(Connected(False))
    assert (rejected, inbox.dropped, len(inbox)) == ([2], 1, 2)
    assert [type(event) for event in inbox.take(9)] == [Received, Connected]
    inbox.put(message(3, 60))
    assert [event.token for event in inbox.take(9)] == [3]


def test_the_inbox_is_bounded_by_number_too(monkeypatch):
    """Empty messages cost memory as well."""
    monkeypatch.setattr(inbox_module, "MAX_MESSAGES", 2)
    inbox = Inbox(100, lambda token: None)
    for token in range(3):
        inbox.put(message(token, 0))
    assert (len(inbox), inbox.dropped, inbox.highest) == (2, 1, 2)
    assert [event.token for event in inbox.take(1)] == [0]
    inbox.put(message(9, 0))
    assert [event.token for event in inbox.take(9)] == [1, 9]


def test_no_wake_up_is_lost():
    """Two threads in lock-step, thousands of times: whoever sleeps is woken by what is put in."""
    inbox, turns = Inbox(1 << 20, lambda token: None), threading.Semaphore(0)
    inbox._arrived = watched = Watched()
    rounds, seen = 5_000, []

    def put():
        for token in range(rounds):
            turns.acquire()
            inbox.put(message(token, 1))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    putter = threading.Thread(target=put, daemon=True)
    putter.start()
    try:
        for _ in range(rounds):
            turns.release()
            while not (batch := inbox.take(9)):
                inbox.wait(5.0)
                assert watched.overslept == 0
            seen += [event.token for event in batch]
    finally:
        sys.setswitchinterval(interval)
    putter.join()
    assert seen == list(range(rounds))


def test_an_event_that_comes_behind_the_last_look_ends_the_wait():
    """The worst moment: the sleeper has seen nothing there and does not wait yet."""
    inbox, settled = Inbox(100, lambda token: None), threading.Event()
    inbox._arrived = watched = Watched()

    def put():
        inbox.put(message(1))
        settled.set()

    putter = threading.Thread(target=put, daemon=True)

    class Looked(deque):
        def __bool__(self):
            there = len(self) > 0
            if putter.ident is None:
                watched.knocks = settled.set
                putter.start()
                assert settled.wait(10)  # it is through, or wants the lock that the sleeper holds
            return there

    inbox._events = Looked()
    inbox.wait(1.0)
    putter.join(10)
    assert (watched.overslept, len(inbox)) == (0, 1)


def test_a_wake_before_the_wait_ends_it():
    """Who is to stop is told so while it works, too: it must not sleep its time out first."""
    inbox = Inbox(100, lambda token: None)
    inbox._arrived = watched = Watched()
    inbox.wake()
    inbox.wait(0.01)
    assert watched.overslept == 0
    inbox.wait(0.01)
    assert watched.overslept == 1


class Watched(threading.Condition):
    """Counts the waits that nobody ended; ``knocks`` is called by whoever wants the lock."""

    overslept = 0
    knocks = staticmethod(lambda: None)

    def __enter__(self):
        self.knocks()
        return super().__enter__()

    def wait(self, timeout=None):
        woken = super().wait(timeout)
        self.overslept += not woken
        return woken


class Window:
    """A transport with room for so many publishes."""

    def __init__(self, room):
        self.room = room
        self.sent = []

    def publish(self, topic, payload, *, retain=False):
        if len(self.sent) >= self.room:
            return None
        self.sent.append(topic)
        return len(self.sent)


def test_outgoing_messages_keep_their_order():
    """What waits goes before what is new."""
    wire = Window(1)
    outgoing = Outgoing(wire)
    for topic in "abc":
        outgoing.send(topic, b"")
    assert (wire.sent, len(outgoing)) == (["a"], 2)
    wire.room = 2
    assert not outgoing.flush()
    wire.room = 9
    outgoing.send("d", b"")
    assert outgoing.flush()
    assert wire.sent == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("name", "bound"), [("MAX_MESSAGES", 2), ("MAX_BYTES", 20)])
def test_outgoing_drops_the_oldest_and_counts(monkeypatch, name, bound):
    """Memory stays bounded, by number and by bytes."""
    monkeypatch.setattr(outgoing_module, name, bound)
    wire = Window(0)
    outgoing = Outgoing(wire)
    for topic in "abc":
        outgoing.send(topic, bytes(10))
    wire.room = 9
    outgoing.flush()
    assert (wire.sent, outgoing.dropped) == (["b", "c"], 1)
