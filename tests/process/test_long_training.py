"""A training that takes long, on a device that is switched off in its middle: real processes, kill -9."""

import time
from pathlib import Path

import pytest

from broker_coordinator.books.audit import audit
from edge_agent.checkpoint import read_checkpoint
from hil.local_fleet import FleetOptions, LocalFleet

pytestmark = pytest.mark.process

PATIENCE_S = 60.0
STEPS = 40
LAST = 37


@pytest.fixture
def fleet(tmp_path: Path):
    """Two devices, whose one version needs both; a checkpoint after each of 40 steps."""
    fleet = LocalFleet(
        tmp_path / "fleet",
        FleetOptions(
            devices=2,
            versions=1,
            runtime="numpy",
            settings={
                "buffer": {"size": 2, "flush_after_s": 600},
                "plan": {"epochs": 50, "max_steps": STEPS, "momentum": 0.9},
            },
            agent_settings={"worker": {"checkpoint_every_s": 0}},
        ),
    )
    try:
        fleet.prepare()
        yield fleet
    finally:
        fleet.stop()


def test_a_power_cut_costs_no_more_than_one_interval_and_the_result_counts_once(fleet):
    """Worker and agent die after step 37 of 40; the next life would die at its fifth checkpoint, and has
    only three steps left to take."""
    victim, other = fleet.agents.values()
    checkpoint = fleet.agent_states[0] / "checkpoint"
    fleet.coordinator.start()
    other.start()
    victim.start({"LICHEN_CRASH_POINT": f"worker.checkpoint.durable:{LAST}"})
    ends = time.monotonic() + PATIENCE_S
    while (saved := read_checkpoint(checkpoint)) is None or saved.steps < LAST:
        assert time.monotonic() < ends, victim.last_words()
        time.sleep(0.02)
    victim.kill()
    assert read_checkpoint(checkpoint).steps == LAST
    victim.start({"LICHEN_CRASH_POINT": "worker.checkpoint.durable:5"})
    assert fleet.coordinator.wait(PATIENCE_S) == 0, fleet.coordinator.last_words()
    assert fleet.status()["version"] == 1
    fleet.stop()
    books = audit(fleet.state, fleet.agent_states)
    assert books.balanced, books.faults
    assert (books.lost, books.duplicated, books.replay_ok) == (0, 0, True)
