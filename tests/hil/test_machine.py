"""Machines of virtual devices: what the agent's own gates are told, and what comes of it."""

import numpy as np
import pytest

import lichen
from fl_protocol.clock import ManualClock
from fl_protocol.errors import ConfigError
from hil.simulate.device_class import DeviceClass
from hil.simulate.machine import Battery, DeviceMachine, NightCharger, WindowCharger
from models.zoo import digits
from models.zoo.mlp import digits_artifact

HOUR_S = 3600.0
DAY_S = 86400.0


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A small MLP on the digits."""
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits", hidden=8)


def run(artifact, **options):
    """Ten devices that all are asked for each version."""
    training, _ = digits.split(seed=0)
    pairs = [(training.x[device::10], training.y[device::10]) for device in range(10)]
    settings = {
        "count": 10,
        "versions": 3,
        "runtimes": ("numpy",),
        "fleet": {"buffer": {"size": 5, "flush_after_s": 3600.0}},
    }
    return lichen.simulate(artifact, pairs, **{**settings, **options})


def test_a_battery_drains_by_training_and_charges_at_night():
    """Two hours of training of eight are a quarter of it; two hours of the night fill it."""
    battery = Battery(NightCharger(), hours=8.0, seed=0, device=0)
    assert battery.share(6.0 * HOUR_S) == 1.0  # after a night, whatever was drawn
    battery.trains(8 * HOUR_S, 2 * HOUR_S)
    assert battery.share(9 * HOUR_S) == pytest.approx(0.875)
    assert battery.share(20 * HOUR_S) == pytest.approx(0.75)
    battery.trains(20 * HOUR_S, 8 * HOUR_S)
    battery.trains(21 * HOUR_S, 0.0)
    assert battery.share(22 * HOUR_S) == pytest.approx(0.625)
    assert battery.share(22.5 * HOUR_S) == pytest.approx(0.875)
    assert battery.share(3 * DAY_S) == 1.0
    assert [battery.charges(hour * HOUR_S) for hour in (0, 5.9, 6.1, 21.9, 22.1, 48.1)] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("charges_on", [True, False])
def test_a_battery_charges_while_the_device_lies_still(charges_on):
    """While it is on, or while it is off, and not in between."""
    battery = Battery(WindowCharger(charges_on=charges_on), hours=1.0, seed=0, device=0)
    battery.switched(0.0, on=not charges_on)
    battery.trains(0.0, 10 * HOUR_S)
    assert battery.share(10 * HOUR_S) == 0.0
    battery.switched(10 * HOUR_S, on=charges_on)
    assert battery.charges(10.1 * HOUR_S)
    assert battery.share(11 * HOUR_S) == pytest.approx(0.5)
    battery.switched(11 * HOUR_S, on=not charges_on)
    assert battery.share(20 * HOUR_S) == pytest.approx(0.5)


def test_a_machine_without_a_battery_is_on_mains():
    """It has the memory of its class."""
    machine = DeviceMachine(ManualClock(), memory_mb=48.0)
    assert machine.on_mains() is True
    assert machine.battery() is None
    assert machine.free_memory_mb() == 48.0


def test_a_device_with_little_memory_takes_no_part(artifact):
    """Its agent's own gate keeps it from training; without that gate it trains."""
    classes = [DeviceClass(name="small", memory_mb=48.0), DeviceClass(name="large", memory_mb=256.0)]
    gated = run(artifact, classes=classes, gates={"min_memory_mb": 100.0})
    free = run(artifact, classes=classes, gates={})
    assert free.devices_heard == 10
    assert 0 < gated.devices_heard < 10
    assert gated.versions == free.versions == 3


def test_a_drained_device_waits_for_the_night(artifact):
    """A training is two thirds of a battery: some end in the middle, and by day there are few. In the end
    all have taken part, which needs a charger."""
    hungry = [DeviceClass(name="phone", battery=True, battery_h=3.0, step_s=720.0, start_s=0.0)]
    options = {
        "classes": hungry,
        "versions": 14,
        "plan": {"epochs": 2, "batch_size": 32, "deadline_s": 86400.0},
    }
    whole = run(artifact, **options)
    gated = run(artifact, gates={"min_battery": 0.3}, **options)
    assert gated.versions == whole.versions == 14
    assert whole.virtual_s < 16 * HOUR_S
    assert gated.virtual_s > 22 * HOUR_S
    assert gated.devices_heard == 10


def test_gates_misspelt_are_told(artifact):
    """With the nearest."""
    with pytest.raises(ConfigError, match="did you mean 'min_battery'"):
        run(artifact, gates={"min_batery": 0.3})


def test_without_gates_nothing_changes(artifact):
    """Gates that are off ask for nothing, whatever the machine is."""
    one = run(artifact, classes=["phone"])
    assert one == run(artifact, classes=["phone"], gates={})
    assert np.isfinite(one.virtual_s)
