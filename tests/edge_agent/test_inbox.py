"""The inbox: bounded for messages, open for all else."""

import threading

from edge_agent.inbox import MAX_WAITING, Inbox
from fl_protocol.transport import Disconnected, Received


def test_messages_beyond_the_bound_are_dropped_and_counted_and_control_is_not():
    """A flood costs memory for 64 messages; a lost connection is still told."""
    inbox = Inbox()
    for number in range(MAX_WAITING + 10):
        inbox.put(Received("t", b"", False, number))
    inbox.put(Disconnected("gone"))
    assert inbox.dropped == 10
    items = list(inbox.take(2 * MAX_WAITING))
    assert len(items) == MAX_WAITING + 1
    assert items[-1] == Disconnected("gone")
    assert not len(inbox)


def test_what_wakes_the_reader_is_not_lost():
    """``wait`` returns when something comes, and ``take`` yields it first."""
    inbox = Inbox()
    thread = threading.Thread(target=lambda: inbox.put("first"))
    thread.start()
    inbox.wait(10.0)
    thread.join()
    inbox.put("second")
    assert len(inbox) == 2
    assert list(inbox.take(1)) == ["first"]
    assert list(inbox.take(9)) == ["second"]


def test_waiting_ends_by_itself():
    """No wait without an end."""
    inbox = Inbox()
    inbox.wait(0.001)
    assert list(inbox.take(9)) == []
