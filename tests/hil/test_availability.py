"""When virtual devices are on: windows ascend, a device's are its own, and each kind keeps its promise."""

import itertools
import math

import numpy as np
import pytest

from fl_protocol.errors import ConfigError
from hil.simulate.availability import AVAILABILITIES, Commuter, Diurnal, LognormalOnOff, availability_of
from hil.simulate.recorded_windows import read_windows

HOUR_S, DAY_S = 3600, 86400
KINDS = ["always", "commuter", "diurnal", "lognormal"]


def windows(availability, device=0, *, seed=0, count=200):
    return list(itertools.islice(availability.windows(device, seed), count))


def csv(folder, *lines):
    path = folder / "trace.csv"
    path.write_text("\n".join(["device,on_s,off_s", *lines, ""]))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", range(5))
def test_windows_ascend_and_do_not_touch(kind, device):
    """Each begins after the last ended and has a length; the first is not before time 0."""
    edges = [edge for window in windows(availability_of(kind), device) for edge in window]
    assert edges[0] >= 0
    assert all(before < after for before, after in itertools.pairwise(edges))


@pytest.mark.parametrize("kind", ["commuter", "diurnal", "lognormal"])
def test_seed_and_number_alone_decide(kind):
    """The same device has the same windows, another one, and another seed, others."""
    availability = availability_of(kind)
    assert windows(availability, 3, seed=1) == windows(availability, 3, seed=1)
    assert windows(availability, 3, seed=1) != windows(availability, 4, seed=1)
    assert windows(availability, 3, seed=1) != windows(availability, 3, seed=2)


def test_windows_are_frozen():
    """Virtual times of old results are those of new ones, whatever NumPy there is."""
    first = windows(LognormalOnOff(), 7, seed=3, count=2)
    expected = [(0.0, 2645.9211324886824), (3138.7077841429636, 5083.934807383183)]
    np.testing.assert_allclose(first, expected, rtol=1e-9)


@pytest.mark.parametrize("starts_h", [0, 12, 23])
def test_a_diurnal_device_is_on_at_night(starts_h):
    """Windows of 8 hours or so, begun about 22 o'clock by the scenario's clock, one a night; of a hundred
    nights a few are left out."""
    for device in range(10):
        nights = windows(Diurnal(starts_h=starts_h), device, count=100)
        begun = [(on / HOUR_S + starts_h) % 24 for on, _ in nights[1:]]
        assert all(hour >= 19.5 or hour <= 0.5 for hour in begun)
        assert all(7 <= (off - on) / HOUR_S <= 9 for on, off in nights[1:])
        assert 100 <= nights[-1][1] / DAY_S <= 125


def test_a_night_under_way_at_time_0_is_on_at_once():
    """A simulation that begins at midnight finds most devices on, one that begins at noon none."""
    midnight, noon = (
        [windows(Diurnal(starts_h=hour), device, count=1)[0][0] == 0 for device in range(50)]
        for hour in (0, 12)
    )
    assert np.mean(midnight) > 0.8
    assert not any(noon)


def test_a_commuter_is_off_twice_on_each_of_five_days():
    """Ten gaps a week of the length that is said, none at the weekend."""
    course = windows(Commuter(), 2, count=101)
    gaps = [(before[1], after[0]) for before, after in itertools.pairwise(course)]
    assert all((on - off) / HOUR_S == pytest.approx(0.75) for off, on in gaps)
    week = [off for off, _ in gaps if off < 7 * DAY_S]
    assert len(week) == 10
    assert max(week) < 5 * DAY_S


def test_lognormal_devices_are_on_as_much_at_the_beginning_as_later():
    """With medians of 10 and 20 minutes a third of 2,000 devices is on at any moment, at time 0 too."""
    availability = LognormalOnOff(on_s=600, off_s=1200)

    def on_at(moment):
        def is_on(device):
            course = itertools.takewhile(lambda window: window[0] <= moment, availability.windows(device, 5))
            return any(on <= moment < off for on, off in course)

        return np.mean([is_on(device) for device in range(2000)])

    assert on_at(0) == pytest.approx(1 / 3, abs=0.035)
    assert on_at(5000) == pytest.approx(1 / 3, abs=0.035)
    lengths = [off - on for on, off in windows(availability, count=4000)]
    assert np.median(lengths) == pytest.approx(600, rel=0.06)
    assert np.std(np.log(lengths)) == pytest.approx(1, abs=0.05)


def test_recorded_windows_come_again(tmp_path):
    """Ordered, joined where they touch, over again every ``every_s``; more devices take the same ones."""
    path = csv(tmp_path, "b, 50, 60", "a,30,40", "", "a,0,10", "a,10,20")
    recorded = availability_of({"kind": "csv", "file": path.name, "every_s": 100}, path=tmp_path / "s.toml")
    assert windows(recorded, 0, count=3) == [(50, 60), (150, 160), (250, 260)]
    assert windows(recorded, 1, count=4) == [(0, 20), (30, 40), (100, 120), (130, 140)]
    assert windows(recorded, 3, count=4) == windows(recorded, 1, count=4)
    plain = availability_of(path.name, path=tmp_path / "s.toml")
    assert windows(plain, 1, count=3) == [(0, 20), (30, 40), (60, 80)]


def test_a_recorded_course_that_is_shifted_is_the_same_course(tmp_path):
    """As much on, begun elsewhere, and what was on at the new beginning is on."""
    path = csv(tmp_path, "a,0,90")
    shifted = availability_of({"kind": "csv", "file": str(path), "every_s": 100, "spread_s": 1000})
    for device in range(20):
        (first_on, first_off), (on, off), (after, _) = windows(shifted, device, count=3)
        assert (off - on, after - on) == (pytest.approx(90), pytest.approx(100))
        assert on - first_off == pytest.approx(10)
        assert first_off - first_on == pytest.approx(90) or first_on == 0


def test_a_device_that_was_always_on_stays_on(tmp_path):
    """A window as long as the recording has no end: nothing is waited for."""
    assert windows(availability_of(str(csv(tmp_path, "a,0,5", "a,5,9")))) == [(0, math.inf)]


def test_faults_of_a_recording_are_told_by_line(tmp_path):
    """All of them at once, and not one line more is read than was said."""
    path = csv(tmp_path, "a,1", "a,x,2", "a,5,5", "a,-1,4", "a,nan,4", "a,1,inf", "b,0,4", f"{'c' * 300},1,2")
    with pytest.raises(ConfigError) as refused:
        read_windows(path)
    assert [fault.split(": ")[0] for fault in refused.value.faults] == [
        f"trace.csv:{line}" for line in (2, 3, 4, 5, 6, 7, 9)
    ]
    with pytest.raises(ConfigError, match=r"trace\.csv:3: begins before the window of line 2 ends"):
        read_windows(csv(tmp_path, "a,0,10", "a,9,12"))
    with pytest.raises(ConfigError, match="holds no window"):
        read_windows(csv(tmp_path))
    path.write_text("device;on;off\n")
    with pytest.raises(ConfigError, match=r"trace\.csv:1: the first line must be device,on_s,off_s"):
        read_windows(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        read_windows(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_windows(tmp_path / "none.csv")


def test_a_recording_is_read_up_to_a_bound(tmp_path, monkeypatch):
    """A file without an end is refused, not read."""
    monkeypatch.setattr("hil.simulate.recorded_windows.MOST_ROWS", 3)
    assert len(read_windows(csv(tmp_path, "a,0,1", "b,0,1", "c,0,1"))) == 3
    with pytest.raises(ConfigError, match=r"trace\.csv:5: more than 3 windows"):
        read_windows(csv(tmp_path, "a,0,1", "b,0,1", "c,0,1", "d,0,1", "e,0,1"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("diurnl", "did you mean 'diurnal'"),
        ({"kind": 3}, "there are always"),
        ({"kind": "diurnal", "hour": 3}, "did you mean 'hours'"),
        ({"kind": "diurnal", "hours": 30}, "hours = 30 is not from 0.1 to 23; nearest is 23"),
        ({"kind": "diurnal", "hours": 8, "jitter_h": 5}, "jitter_h = 5 is not from 0 to 3.99"),
        ({"kind": "commuter", "returns_h": 7.6}, "returns_h = 7.6 is not from 8.76"),
        ({"kind": "lognormal", "on_s": 0}, "nearest is 1"),
        ({"kind": "lognormal", "on_s": "long"}, "must be a number"),
        ({"kind": "csv"}, "file: missing"),
        ("none.csv", "cannot read"),
    ],
)
def test_a_bad_word_is_refused_with_what_to_write(words, told):
    """The key, and the nearest that would do."""
    with pytest.raises(ConfigError, match=told):
        availability_of(words)


def test_every_kind_is_there():
    """As the scenario files call them."""
    assert sorted(AVAILABILITIES) == sorted([*KINDS, "csv"])
