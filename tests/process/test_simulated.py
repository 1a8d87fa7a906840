"""A script of who takes part when, followed by virtual devices and by real processes: the same versions."""

import numpy as np
import pytest

import lichen
from broker_coordinator.storage.sqlite_store import SqliteStore
from edge_agent.outbox import Outbox
from edge_agent.samples import SampleStore
from fl_io.clock import SystemClock
from hil.simulate.device import DEVICE_FOLDER

pytestmark = pytest.mark.process

DEVICES = 3
SCRIPT = [[0, 1, 2], [2, 0, 1], [1, 2, 0]]
"""Which device gives a version its first update, its second and its last. The last one of a version begins
the next: it is not to be stopped in the middle of that."""
TURN_S = 100.0
CODEC = "float16"
"""Without randomness of its own: an update's id is drawn anew by each real process."""


class Scripted:
    """Each device has power in its turns alone."""

    def windows(self, device, seed):
        """See ``Availability``."""
        order = [number for version in SCRIPT for number in version]
        turns = [place for place, number in enumerate(order) if number == device]
        for place in turns:
            if place - 1 not in turns:
                end = place + 2 if place + 1 in turns else place + 1
                yield place * TURN_S, end * TURN_S if end < len(order) else float("inf")


def samples(fleet, device):
    """What a device's store has to train on."""
    with SampleStore(fleet.agent_state(device) / "samples.db") as store:
        x, y = store.training().all()
        return np.array(x), np.array(y)


def versions(state):
    """The digests of all versions of a coordinator's state, by number."""
    store = SqliteStore.open(state, read_only=True)
    try:
        return {number: store.version(number).digest.hex() for number in range(1, len(SCRIPT) + 1)}
    finally:
        store.close()


def test_the_same_order_of_events_gives_the_same_versions(local_fleet, steps, tmp_path):
    """Three devices, three versions, each time in another order; every bit of weights, momentum and norms is
    in a version's hash. What virtual devices were born as, the real ones are given."""
    tables = {
        "buffer": {"size": DEVICES, "flush_after_s": 3600.0},
        "server": {"optimizer": "momentum"},
    }
    fleet = local_fleet(devices=DEVICES, versions=len(SCRIPT), codec=CODEC, settings=tables)
    born = {}

    def look(virtual):
        for device, name in zip(virtual.devices, fleet.agents, strict=True):
            if name not in born and device.on:
                born[name] = device.name, device.disk.read(DEVICE_FOLDER / "identity.json")

    held_out = fleet.workload.held_out
    simulated = lichen.simulate(
        fleet.folder / "artifact",
        [samples(fleet, name) for name in fleet.agents],
        count=DEVICES,
        versions=len(SCRIPT),
        codec=CODEC,
        plan=fleet.workload.plan | {"epochs": 1},
        fleet=tables,
        evaluation=(held_out.x, held_out.y),
        availability=Scripted(),
        runtimes=("numpy",),
        state=tmp_path / "simulated",
        progress=look,
    )
    assert simulated.accepted == simulated.trainings == DEVICES * len(SCRIPT)
    for name, (virtual_name, identity) in born.items():
        state = fleet.agent_state(name)
        (state / "identity.json").write_bytes(identity)
        # A folder without an outbox has lost its history, and becomes another.
        Outbox(state / "agent.db", max_bytes=1 << 20, max_age_s=3600.0, clock=SystemClock()).close()
        configuration = state.parent / "agent.toml"
        configuration.write_text(configuration.read_text().replace(f'"{name}"', f'"{virtual_name}"'))
    assert len({identity for _, identity in born.values()}) == DEVICES

    fleet.coordinator.start()
    agents = list(fleet.agents.values())
    running = None
    accepted = 0
    for version in SCRIPT:
        for number in version:
            if number != running:
                agents[number].start()
            running = number
            accepted += 1
            if accepted == DEVICES * len(SCRIPT):
                break
            steps.until(fleet, lambda least=accepted: fleet.status().get("updates_accepted", 0) >= least)
            if number != version[-1]:
                agents[number].stop()
    steps.end(fleet)
    assert versions(fleet.state) == versions(tmp_path / "simulated")
