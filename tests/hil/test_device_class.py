"""Classes of devices: tables are checked by key and value, shares are kept, a device's draw is its own."""

import math
from collections import Counter

import numpy as np
import pytest

from fl_protocol.errors import ConfigError
from hil.simulate.device_class import DeviceClass, class_of_name, classes_of, drawn

READY = ["gateway", "microcontroller", "phone", "pi"]


def test_those_that_come_along_differ_as_such_machines_do():
    """The gateway is fastest, the microcontroller slowest and smallest; links are as their profiles."""
    gateway, microcontroller, phone, pi = classes_of(READY)
    assert gateway.step_s < phone.step_s < pi.step_s < microcontroller.step_s
    assert microcontroller.memory_mb < pi.memory_mb
    assert [each.battery for each in (gateway, microcontroller, phone, pi)] == [False, True, True, False]
    assert (phone.up_bytes_s, phone.down_bytes_s, phone.latency_s) == (625_000, 1_250_000, 0.0275)


def test_a_table_changes_what_it_names():
    """A class that comes along by its name or by ``like``; a link's figures, and those that say otherwise."""
    tables = {
        "phone": {"share": 3},
        "old phone": {"like": "phone", "step_s": 0.2, "link": "nb-iot", "latency_s": 2},
        "own": {"step_s": 0.5},
    }
    phone, old, own = classes_of(tables)
    assert phone == DeviceClass(**{**_fields(class_of_name("phone")), "share": 3.0})
    assert (old.name, old.step_s, old.memory_mb, old.battery) == ("old phone", 0.2, phone.memory_mb, True)
    assert (old.up_bytes_s, old.latency_s) == (7750, 2)
    assert (own.up_bytes_s, own.battery, own.step_spread) == (math.inf, False, 0)


def _fields(value):
    return {name: getattr(value, name) for name in DeviceClass.__slots__}


def test_shares_are_kept_and_more_devices_change_none():
    """Of 4,000 devices three quarters are phones; drawing is by number, whoever else is drawn."""
    classes = classes_of({"phone": {"share": 0.75}, "pi": {"share": 0.25}})
    counted = Counter(drawn(classes, device, 1).name for device in range(4000))
    assert counted["phone"] / 4000 == pytest.approx(0.75, abs=0.025)
    assert drawn(classes, 11, 1) == drawn(classes, 11, 1)
    assert [drawn(classes, n, 1) for n in range(20)] != [drawn(classes, n, 2) for n in range(20)]


def test_steps_spread_around_the_median_of_their_class():
    """Lognormal, with the sigma that is said; without one all are alike."""
    (phone,) = classes_of({"phone": {"step_s": 2, "step_spread": 0.7}})
    logs = np.log([drawn([phone], device, 0).step_s for device in range(3000)])
    assert np.median(logs) == pytest.approx(np.log(2), abs=0.05)
    assert np.std(logs) == pytest.approx(0.7, abs=0.03)
    (alike,) = classes_of({"phone": {"step_spread": 0}})
    assert {drawn([alike], device, 0).step_s for device in range(9)} == {alike.step_s}


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({}, "there is no device class"),
        (["fone"], "no device class is called 'fone', did you mean 'phone'"),
        ({"a": {"like": "pie"}}, "like: no class is called 'pie', did you mean 'pi'"),
        ({"a": {"link": "wfi"}}, "link: no link profile is called 'wfi', did you mean 'wifi'"),
        ({"a": {"link": "xyz"}}, "there are basement, commuter, lan"),
        ({"a": {"link": "none.toml"}}, "none.toml"),
        ({"a": {"step": 1}}, "unknown key, did you mean 'step_s'"),
        ({"a": {"share": -1}}, "share = -1 is out of range; the nearest is 1e-06"),
        ({"a": {"step_spread": 9}}, "step_spread = 9 is out of range; the nearest is 3"),
        ({"a": {"memory_mb": "much"}}, "memory_mb: must be a number"),
        ({"a": 3}, "a: must be a table"),
    ],
)
def test_a_fault_names_the_key_and_the_nearest_that_would_do(tables, told):
    """Whatever the fault is."""
    with pytest.raises(ConfigError, match=told):
        classes_of(tables)


def test_all_faults_are_told_at_once():
    """With the class that each is in."""
    with pytest.raises(ConfigError) as refused:
        classes_of({"one": {"share": 0, "speed": 1}, "two": {"start_s": -1, "latency_s": 9e9}, "pi": {}})
    assert [fault.split(":")[0] for fault in refused.value.faults] == ["one", "two"]
    assert "start_s = -1" in str(refused.value)
    assert "latency_s = 9e+09" in str(refused.value)


def test_a_class_made_by_hand_is_checked_as_well():
    """A number that is none among them."""
    with pytest.raises(ValueError, match="step_s = nan is out of range"):
        DeviceClass(name="x", step_s=math.nan)
