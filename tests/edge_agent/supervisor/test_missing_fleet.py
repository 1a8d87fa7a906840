"""A device that waits under the name of a fleet that is not there says so."""

import pytest

from broker_coordinator.fleet.authority import Authority
from edge_agent.attendance import ALONE_AFTER_S
from fl_io.tls import TlsFiles
from fl_protocol.transport import Connected

NOBODY = "nobody is there under fleet 'tset': is that its name, and was its coordinator ever started?"
NO_TASK = "no task has been published yet"


@pytest.fixture
def misnamed(make_world):
    """A device of fleet ``tset`` on the broker of ``test``, whose coordinator is there with a version."""
    world = make_world(fleet="tset")
    world.coordinator.present()
    world.coordinator.publish_version(1)
    world.boot()
    return world


def test_a_fleet_without_coordinator_and_task_is_named_after_a_while(misnamed):
    """In the status that is written at that moment; not before a first answer could have come."""
    misnamed.advance(ALONE_AFTER_S - 1)
    assert misnamed.agent.idle_reason == NO_TASK
    misnamed.advance(1)
    assert misnamed.agent.status()["idle_reason"] == NOBODY
    assert misnamed.agent.state == "waiting"


def test_the_agent_wakes_for_it_by_itself_and_sleeps_on(misnamed):
    """Whoever drives it is told when; and later it is not called any more often for it."""
    began, said_at = misnamed.clock.monotonic(), []
    calls = 0
    while (passed := misnamed.clock.monotonic() - began) < 3600:
        wait = misnamed.pump()
        calls += 1
        if misnamed.agent.idle_reason == NOBODY:
            said_at.append(passed)
        misnamed.clock.advance(min(wait, 3600 - passed))
    assert said_at[0] == pytest.approx(ALONE_AFTER_S)
    assert calls < 50


def test_every_connection_has_its_while(misnamed):
    """What a broken connection did not bring proves nothing about the next."""
    misnamed.advance(ALONE_AFTER_S + 1)
    assert misnamed.agent.idle_reason == NOBODY
    misnamed.agent.receive(Connected(False))
    misnamed.advance(ALONE_AFTER_S - 1)
    assert misnamed.agent.idle_reason == NO_TASK


def test_a_coordinator_or_a_task_is_somebody(make_world):
    """Though it has no task yet; or though its presence was never retained."""
    world = make_world()
    world.coordinator.present()
    world.boot()
    world.advance(ALONE_AFTER_S + 1)
    assert world.agent.idle_reason == NO_TASK
    other = make_world()
    other.boot()
    other.advance(ALONE_AFTER_S + 1)
    assert "nobody is there" in other.agent.idle_reason
    other.coordinator.publish_version(1)
    other.advance(60)
    assert other.coordinator.begins
    assert "nobody" not in other.agent.idle_reason


def test_an_authority_of_another_fleet_is_named_at_once_and_a_task_refutes_it(make_world, tmp_path):
    """It is a guess at why nothing comes: where something comes it is not made."""
    (tmp_path / "ca.pem").write_bytes(Authority.make("barn").certificate)
    world = make_world(tls=TlsFiles(ca=tmp_path / "ca.pem"))
    world.boot()
    world.advance(1)
    said = "ca.pem is the authority of fleet 'barn', but fleet in agent.toml is 'test'"
    assert world.agent.idle_reason == said
    world.coordinator.publish_version(1)
    world.advance(60)
    assert world.agent.idle_reason != said
    assert world.coordinator.begins
