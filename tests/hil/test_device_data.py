"""Samples of virtual devices: a device's are its own, whatever other devices there are."""

import numpy as np
import pytest

from fl_protocol.errors import ConfigError
from hil.simulate.device_data import own_devices, partitioned, slow_hold_classes
from hil.workload import Samples

COUNT, CLASSES = 1000, 5
SAMPLES = Samples(
    x=np.arange(COUNT, dtype=np.float32)[:, None],
    y=np.random.default_rng(0).integers(0, CLASSES, COUNT).astype(np.int32),
)
USERS = np.arange(COUNT) // 100 % 4


def rows(samples):
    return samples.x[:, 0].astype(int).tolist()


@pytest.mark.parametrize("scheme", ["iid", "dirichlet:0.3", "by-user"])
def test_dealt_samples_go_to_one_device_each(scheme):
    """All of them, with their labels."""
    fleet = partitioned(SAMPLES, 4, scheme=scheme, seed=1, users=USERS)
    assert len(fleet) == 4
    everything = [row for device in range(4) for row in rows(fleet[device])]
    assert sorted(everything) == list(range(COUNT))
    for device in range(4):
        own = fleet[device]
        np.testing.assert_array_equal(own.y, SAMPLES.y[own.x[:, 0].astype(int)])


@pytest.mark.parametrize("scheme", ["iid", "dirichlet:0.3", "by-user"])
def test_drawn_samples_do_not_change_with_the_number_of_devices(scheme):
    """Ten thousand devices of 14 samples, made one at a time; device 7 is that of ten."""
    few, many, other = (
        partitioned(SAMPLES, devices, scheme=scheme, seed=seed, per_device=14, users=USERS)
        for devices, seed in ((10, 1), (10_000, 1), (10, 2))
    )
    assert rows(few[7]) == rows(many[7]) == rows(many[7])
    assert rows(few[7]) != rows(other[7])
    assert rows(few[7]) != rows(few[3])
    own = many[9_999]
    assert len(own) == 14
    np.testing.assert_array_equal(own.y, SAMPLES.y[rows(own)])
    with pytest.raises(IndexError):
        few[10]


def test_drawn_classes_are_as_uneven_as_the_concentration_says():
    """Over a fleet they are those of the data; on a device one prevails as it falls."""

    def commonest(scheme):
        fleet = partitioned(SAMPLES, 300, scheme=scheme, seed=0, per_device=40)
        counts = np.array([np.bincount(fleet[device].y, minlength=CLASSES) for device in range(300)])
        np.testing.assert_allclose(counts.sum(0) / counts.sum(), np.bincount(SAMPLES.y) / COUNT, atol=0.06)
        return (counts.max(1) / 40).mean()

    assert commonest("dirichlet:0.1") > 0.7 > commonest("dirichlet:1.0") > commonest("iid") + 0.05
    assert commonest("dirichlet:1000") == pytest.approx(commonest("iid"), abs=0.03)


def test_a_device_is_a_user():
    """Device 0 has all samples of the first alone; a fifth device of four users draws from the first's."""
    fleet = partitioned(SAMPLES, 3, scheme="by-user", seed=0, users=USERS)
    assert rows(fleet[0]) == np.flatnonzero(USERS == 0).tolist()
    drawn = partitioned(SAMPLES, 5, scheme="by-user", seed=0, users=USERS, per_device=30)
    assert set(rows(drawn[4])) <= set(rows(fleet[0]))
    assert rows(drawn[4]) != rows(drawn[0])


def test_slow_devices_alone_hold_the_classes_that_they_should():
    """Each row on one device, and as many on each where the classes allow it."""
    slow = np.array([True, False, False, True, False])
    fleet = partitioned(SAMPLES, 5, scheme="slow:3", seed=0, slow=slow)
    for device, is_slow in enumerate(slow):
        assert set(fleet[device].y.tolist()) >= {3} or not is_slow
        assert not set(fleet[device].y.tolist()) & {3} or is_slow
    assert sorted(row for device in range(5) for row in rows(fleet[device])) == list(range(COUNT))
    assert {len(fleet[device]) for device in range(5)} <= {COUNT // 5, COUNT // 5 + 1}
    crowded = slow_hold_classes(SAMPLES, np.arange(5) == 0, classes=[0, 1, 2, 3], seed=0)
    assert sum(map(len, crowded.rows)) == COUNT
    assert set(SAMPLES.y[crowded.rows[0]].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("scheme", "options", "told"),
    [
        ("dirichlet", {}, "write iid, dirichlet:0.3, by-user, or slow:8,9"),
        ("by-user", {}, "do not tell whose"),
        ("by-user", {"users": USERS}, "at most 4 devices"),
        ("slow:1", {}, "several speeds"),
        ("slow:1", {"slow": np.ones(60, bool)}, "slow devices and fast"),
        ("slow:7", {"slow": np.arange(60) == 0}, "classes 7 the samples hold none"),
        ("iid", {}, "at most 50 devices"),
        ("iid", {"per_device": -1}, "60 devices with -1 samples"),
    ],
)
def test_a_scheme_that_does_not_fit_is_refused_with_what_does(scheme, options, told):
    """Before anything starts."""
    with pytest.raises(ConfigError, match=told):
        partitioned(SAMPLES, 60, scheme=scheme, seed=0, **options)


def test_numbers_have_no_classes_to_draw_by():
    """They are drawn all alike, or refused."""
    numbers = Samples(x=SAMPLES.x, y=SAMPLES.x)
    assert len(partitioned(numbers, 3, scheme="iid", seed=0, per_device=7)[2]) == 7
    with pytest.raises(ConfigError, match="the samples have none"):
        partitioned(numbers, 3, scheme="dirichlet:1.0", seed=0, per_device=7)


OWN = """
import numpy as np
def devices(n, seed):
    for device in range(n):
        yield np.full((device + 2, 3), seed, np.float64), np.arange(device + 2)
def fewer(n, seed): return list(devices(n - 1, seed))
def endless(n, seed):
    while True: yield from devices(1, seed)
def ragged(n, seed): return [(np.zeros((2, 3 + d)), np.zeros(2, int)) for d in range(n)]
def uneven(n, seed): return [(np.zeros((2, 3)), np.zeros(3, int))] * n
def empty(n, seed): return [(np.zeros((0, 3)), np.zeros(0, int))] * n
def poor(n, seed): return [(np.zeros((device, 3)), np.zeros(device, int)) for device in range(n)]
def alone(n, seed): return [np.zeros(3)] * n
def failing(n, seed): raise RuntimeError("no disk")
nothing = None
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's module in a folder of theirs."""
    name = "own_devices_of_a_test"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_function_of_one_s_own_gives_each_device_its_samples(own_module):
    """Called with the number of devices and the seed; arrays in the form that devices store."""
    made = own_devices(f"{own_module}:devices", 3, 9)
    assert [len(own) for own in made] == [2, 3, 4]
    assert (made[0].x.dtype, made[0].y.dtype, made[0].x[0, 0]) == (np.float32, np.int32, 9)
    assert [len(own) for own in own_devices(f"{own_module}:poor", 3, 9)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("fewer", "yields 2 instead of 3 pairs"),
        ("endless", "yields more than 3 pairs"),
        ("ragged", r"device 1 are \[4\] and \[\], those of device 0 \[3\] and \[\]"),
        ("uneven", r"device 0 has x \[2, 3\] and y \[3\]"),
        ("empty", "no device has any rows"),
        ("alone", "device 0 is no pair of arrays"),
        ("failing", "failed: RuntimeError: no disk"),
        ("nothing", "is no function"),
        ("none", "cannot be loaded: AttributeError"),
    ],
)
def test_a_function_that_gives_something_else_is_told_by_name(own_module, function, told):
    """And by the device whose samples are wrong."""
    with pytest.raises(ConfigError, match=told) as refused:
        own_devices(f"{own_module}:{function}", 3, 0)
    assert function in str(refused.value)


def test_a_name_that_is_none_is_refused():
    """It takes a module and a function."""
    with pytest.raises(ConfigError, match="write module:function"):
        own_devices("devices", 3, 0)
    with pytest.raises(ConfigError, match="no_such_module"):
        own_devices("no_such_module:devices", 3, 0)
