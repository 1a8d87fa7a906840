"""How samples are dealt out: nobody's twice, nobody with too few."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.errors import ConfigError
from hil.partition import concentration, partition

SCHEMES = ["iid", "dirichlet:1.0", "dirichlet:0.1", "dirichlet:0.001", "dirichlet:1000"]


def labels(count: int, classes: int = 10) -> np.ndarray:
    return np.random.default_rng(1).integers(0, classes, count).astype(np.int32)


@given(
    devices=st.integers(1, 30),
    more=st.integers(0, 400),
    classes=st.integers(1, 10),
    seed=st.integers(0, 2**32),
    scheme=st.sampled_from(SCHEMES),
)
def test_each_sample_goes_to_one_device_and_none_gets_fewer_than_twenty(devices, more, classes, seed, scheme):
    """Every index once, in rising order on each device, whatever the labels are."""
    count = 20 * devices + more
    parts = partition(labels(count, classes), devices, scheme=scheme, seed=seed)
    assert len(parts) == devices
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert min(len(part) for part in parts) >= 20
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_seed_alone_decides(scheme):
    """The same seed deals the same hands, another one others."""
    first, again, other = (partition(labels(500), 5, scheme=scheme, seed=seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_parts_are_even():
    """Sizes differ by at most one."""
    sizes = {len(part) for part in partition(labels(503), 8, scheme="iid", seed=0)}
    assert max(sizes) - min(sizes) <= 1


def test_a_small_concentration_gives_devices_few_labels():
    """The share of a device's commonest label grows as the concentration falls."""
    known = labels(2000)

    def concentrated(scheme: str) -> float:
        parts = partition(known, 8, scheme=scheme, seed=3)
        return float(np.mean([np.bincount(known[part]).max() / len(part) for part in parts]))

    assert concentrated("dirichlet:0.1") > 0.4 > concentrated("dirichlet:1.0") > concentrated("iid")


@pytest.mark.parametrize(
    "scheme", ["", "IID", "dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:nan", "shards"]
)
def test_an_unknown_scheme_is_refused_with_what_to_write(scheme):
    """The error repeats the word and shows both that there are."""
    with pytest.raises(ConfigError, match=r"write iid or dirichlet:1\.0") as refused:
        partition(labels(100), 2, scheme=scheme, seed=0)
    assert f"partition {scheme!r} is unknown" in str(refused.value)
    with pytest.raises(ConfigError, match="is unknown"):
        concentration(scheme)


@pytest.mark.parametrize("strange", [np.zeros((90, 2), np.int32), np.zeros(90, np.float32)])
def test_what_has_no_classes_is_dealt_out_without_looking_or_not_at_all(strange):
    """Two outputs a row, or a number: iid takes them, a scheme by class says why not."""
    assert sum(map(len, partition(strange, 3, scheme="iid", seed=1))) == 90
    with pytest.raises(ConfigError, match="deals by class"):
        partition(strange, 3, scheme="dirichlet:1.0", seed=1)


def test_too_many_devices_are_refused_with_how_many_there_may_be():
    """99 samples are enough for four devices."""
    with pytest.raises(ConfigError, match="99 samples are too few for 5 devices") as refused:
        partition(labels(99), 5, scheme="iid", seed=0)
    assert refused.value.hint == "at most 4 devices"


def test_by_user_each_device_has_one_user_s_samples():
    """All of theirs, however few, in the order of the users' numbers; spare users have no device."""
    users = np.array([7, 3, 7, 9, 3, 7])
    parts = partition(np.zeros(6, np.int32), 2, scheme="by-user", seed=0, users=users)
    assert [part.tolist() for part in parts] == [[1, 4], [0, 2, 5]]
    assert concentration("by-user") is None
    with pytest.raises(ConfigError, match="at most 3 devices"):
        partition(np.zeros(6, np.int32), 4, scheme="by-user", seed=0, users=users)
    with pytest.raises(ConfigError, match="do not tell whose they are"):
        partition(np.zeros(6, np.int32), 2, scheme="by-user", seed=0)
