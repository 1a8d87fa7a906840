"""How long a device waits between two attempts to connect, and when its network thread counts as dead."""

import threading

import pytest

import fl_io.mqtt
from fl_io.mqtt import (
    FIRST_DELAY_S,
    LONGEST_DELAY_S,
    PERMANENT_DELAY_S,
    BrokerAddress,
    MqttTransport,
)

PATIENCE_S = 20.0
REFUSED, FOR_GOOD, USEFUL = ("no route", False, False), ("no rights", True, False), ("broken", False, True)


@pytest.fixture
def transport():
    """One whose connections end as a test says."""
    transport = MqttTransport(BrokerAddress.parse("mqtt://127.0.0.1:1"), "d")
    yield transport
    transport.stop()


def waits(transport, monkeypatch, endings):
    """The ranges that the delays after connections that end so are drawn from."""
    ranges, left, done = [], list(endings), threading.Event()

    def connect():
        if not left:
            done.set()
            transport._stopping = True
            return REFUSED
        return left.pop(0)

    def draw(low, high):
        ranges.append((low, high))
        return 0.0

    monkeypatch.setattr(transport, "_connect_once", connect)
    monkeypatch.setattr(fl_io.mqtt.random, "uniform", draw)
    transport.start(lambda event: None)
    assert done.wait(PATIENCE_S)
    return ranges


def test_delays_double_to_two_minutes_with_full_jitter(transport, monkeypatch):
    """From nothing to all of it: a fleet that lost its broker at one moment does not come back at one."""
    drawn = waits(transport, monkeypatch, [REFUSED] * 9)
    doubled = [min(FIRST_DELAY_S * 2.0**count, LONGEST_DELAY_S) for count in range(9)]
    assert drawn == [(0.0, delay) for delay in doubled]
    assert doubled[-1] == LONGEST_DELAY_S


def test_what_will_not_mend_by_itself_is_tried_seldom(transport, monkeypatch):
    """Wrong rights or certificates: a quarter of an hour at most between two tries, at once."""
    assert waits(transport, monkeypatch, [REFUSED, FOR_GOOD, FOR_GOOD])[1:] == [(0.0, PERMANENT_DELAY_S)] * 2


def test_a_connection_of_use_begins_anew(transport, monkeypatch):
    """The back-off is for brokers that are not there."""
    drawn = waits(transport, monkeypatch, [REFUSED] * 4 + [USEFUL, REFUSED])
    assert [high for _, high in drawn] == [1.0, 2.0, 4.0, 8.0, 1.0, 2.0]


def test_a_network_thread_that_hangs_is_a_fault(transport, monkeypatch):
    """It said when it would be back, and is not."""
    entered, leave = threading.Event(), threading.Event()

    def hang():
        entered.set()
        leave.wait(PATIENCE_S)
        return REFUSED

    monkeypatch.setattr(transport, "_connect_once", hang)
    assert transport.fault() == ""
    transport.start(lambda event: None)
    assert entered.wait(PATIENCE_S)
    assert transport.fault() == ""
    monkeypatch.setattr(fl_io.mqtt, "OVERDUE_S", -1.0)
    transport._back_within(0.0)
    assert "late" in transport.fault()
    leave.set()


def test_a_network_thread_that_ended_is_a_fault(transport, monkeypatch):
    """Unless it was told to."""
    monkeypatch.setattr(transport, "_run", lambda: None)
    transport.start(lambda event: None)
    transport._thread.join(PATIENCE_S)
    assert transport.fault() == "the network thread has ended"
    transport.stop()
    assert transport.fault() == ""
