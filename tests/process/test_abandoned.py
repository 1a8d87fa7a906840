"""Rounds of real processes: who is left behind abandons its training, is asked again, and nothing is lost."""

import pytest

from broker_coordinator.books.audit import audit

pytestmark = pytest.mark.process


def test_stragglers_abandon_their_training_and_are_asked_again(local_fleet):
    """Three of four are asked so that one answers, four times; a training takes seconds, and each round ends
    two of them. Every update that was made is answered for."""
    fleet = local_fleet(
        devices=4,
        versions=4,
        settings={
            "buffer": {"kind": "rounds", "size": 1, "over_selection": 3.0, "flush_after_s": 60.0},
            "selection": {"kind": "random", "lease_s": 300.0},
            "plan": {"epochs": 300, "lr": 0.01},
        },
    )
    fleet.coordinator.start()
    for agent in fleet.agents.values():
        agent.start()
    assert fleet.coordinator.wait(150.0) == 0
    fleet.stop()
    assert sum(fleet.agent_status(device)["trainings_abandoned"] for device in fleet.agents) > 0
    books = audit(fleet.state, fleet.agent_states)
    assert not books.faults
    assert (books.versions_ok, books.folded, books.lost, books.duplicated) == (4, 4, 0, 0)
