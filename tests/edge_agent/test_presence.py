"""Presence and release numbers."""

from importlib.metadata import version

import pytest

from edge_agent.presence import AGENT_VERSION, Presence, is_older
from fl_protocol.presence import DevicePresence
from fl_protocol.topics import FleetTopics


def test_the_agents_version_is_the_distributions():
    """One number, in two places that must not part."""
    assert version("lichen") == AGENT_VERSION


def test_a_birth_is_small():
    """It is sent at each connect, by devices that pay for bytes."""
    presence = Presence(FleetTopics("demo"), "pi-07")
    birth = presence.birth(
        incarnation=bytes(8), runtimes=("onnx", "numpy"), samples=500, idle_reason="", seen=(1, 100)
    )
    assert len(birth) <= 68


def test_each_connection_has_a_session_of_its_own():
    """The will and the birth of one connection agree; the next has another."""
    presence = Presence(FleetTopics("demo"), "pi-07")
    first, second = (DevicePresence.unpack(presence.will().payload) for _ in range(2))
    assert first.session != second.session
    assert DevicePresence.unpack(presence.farewell()) == second


@pytest.mark.parametrize(
    ("version", "than", "older"),
    [
        ("0.1.0", "0.1.0", False),
        ("0.1.0", "0.2.0", True),
        ("0.10.0", "0.9.9", False),
        ("1.0", "1.0.0", False),
        ("1.0.0rc1", "1.0.0", False),
        ("0.1.0", "rubbish", False),
    ],
)
def test_releases_are_compared_as_numbers(version, than, older):
    """0.10 came after 0.9."""
    assert is_older(version, than) is older
