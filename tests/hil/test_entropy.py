"""Jitter of virtual devices: their own, decided by the seed, and spread as jitter must be."""

from statistics import fmean

from hil.simulate.entropy import SeededChance


def drawn(seed, name, count=200):
    """What one device draws between 10 and 20."""
    chance = SeededChance(seed, name)
    return [chance.uniform(10.0, 20.0) for _ in range(count)]


def test_a_device_draws_the_same_for_the_same_seed_and_nobody_else_does():
    """Two devices, or two runs, that drew alike would all come back in the same moment."""
    assert drawn(1, "dev-1") == drawn(1, "dev-1")
    firsts = {drawn(seed, f"dev-{number}", 1)[0] for seed in range(2) for number in range(500)}
    assert len(firsts) == 1000


def test_draws_fill_the_range_evenly():
    """Of one device over time, and of all devices at their first draw."""
    for values in (drawn(3, "dev-7", 2000), [drawn(3, f"dev-{number}", 1)[0] for number in range(2000)]):
        assert 10.0 <= min(values) < 10.1
        assert 19.9 < max(values) < 20.0
        assert abs(fmean(values) - 15.0) < 0.25
