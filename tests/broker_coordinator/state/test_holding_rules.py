"""Median, trimmed mean and Krum, beside plain NumPy: whatever the codec, the pieces or the order."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.aggregation import held_updates
from broker_coordinator.aggregation.coordinate_median import CoordinateMedian
from broker_coordinator.aggregation.held_updates import HeldUpdates
from broker_coordinator.aggregation.krum import Krum, squared_distances
from broker_coordinator.aggregation.trimmed_mean import TrimmedMean
from broker_coordinator.books.audit import audit
from fl_protocol.errors import ConfigError

RULES = [
    ("median", {}),
    ("trimmed_mean", {"trim": 0.2}),
    ("krum", {"attackers": 1, "chosen": 1}),
    ("krum", {"attackers": 2, "chosen": 3}),
]


def made(name, options):
    """The rule of that name."""
    kinds = {"median": CoordinateMedian, "trimmed_mean": TrimmedMean, "krum": Krum}
    return kinds[name](**options)


def held(vectors, piece=7):
    """Updates that came in pieces."""
    found = HeldUpdates(len(vectors[0]))
    for vector in np.asarray(vectors, np.float32):
        for start in range(0, len(vector), piece):
            found.put(vector[start : start + piece])
        found.end(np.float32(1))
    return found


def reference(name, options, vectors):
    """The papers' definitions, in float64, the whole of every update in memory."""
    rows = np.asarray(vectors, np.float64)
    if name == "median":
        return np.median(rows, axis=0)
    if name == "trimmed_mean":
        cut = int(options["trim"] * len(rows))
        return np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0)
    distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    near = len(rows) - options["attackers"] - 2
    scores = np.sort(distances, axis=1)[:, 1 : near + 1].sum(axis=1)
    return rows[np.argsort(scores, kind="stable")[: options["chosen"]]].mean(axis=0)


def drawn(count=10, size=1001, seed=0):
    """Updates that agree a little, with two attackers among them."""
    rng = np.random.default_rng(seed)
    vectors = (1 + rng.standard_normal((count, size))).astype(np.float32)
    vectors[3], vectors[7] = -10 * vectors[3], 1e6
    return vectors


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("count", [7, 10])
def test_a_rule_does_what_its_paper_says(name, options, count):
    """Beside plain NumPy, of an odd and an even number of updates; attackers have no say."""
    if name == "median" and count == 7:
        options = {}
    vectors = drawn(max(count, 8))[:count] if count > 7 else np.delete(drawn(), [7, 8, 9], axis=0)
    found = made(name, options).combine(held(vectors))
    assert found == pytest.approx(reference(name, options, vectors), rel=1e-5, abs=1e-5)
    assert np.abs(found).max() < 20


@pytest.mark.parametrize(("name", "options"), RULES)
def test_the_order_of_updates_changes_no_bit_of_a_choice(name, options):
    """Sorted values, and distances, do not know who came first; sums of several may round otherwise."""
    vectors = drawn()
    found = made(name, options).combine(held(vectors))
    other = made(name, options).combine(held(vectors[::-1]))
    assert found == pytest.approx(other, rel=1e-5, abs=1e-6)
    if name != "krum" or options["chosen"] == 1:
        assert found.tobytes() == other.tobytes()


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_equal_updates_give_that_update(name, options, count):
    """Identity, of however few; none at all are zeros."""
    vector = np.array([1.5, -2, 0, 3e-20], np.float32)
    assert made(name, options).combine(held([vector] * count)) == pytest.approx(vector, rel=1e-6)
    assert made(name, options).combine(HeldUpdates(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("name", "options"), RULES)
def test_how_updates_were_cut_changes_no_bit(name, options, monkeypatch):
    """Pieces of any length, in memory or spilt to the disk."""
    vectors = drawn()
    whole = made(name, options).combine(held(vectors, piece=1001)).tobytes()
    assert made(name, options).combine(held(vectors, piece=64)).tobytes() == whole
    monkeypatch.setattr(held_updates, "_IN_MEMORY", 1)
    assert made(name, options).combine(held(vectors)).tobytes() == whole
    if name != "krum":
        monkeypatch.setattr(held_updates, "COLUMN_ELEMENTS", 50)
        assert made(name, options).combine(held(vectors)).tobytes() == whole


def test_a_version_with_few_updates_takes_no_attacker_in():
    """A deadline may close with fewer than ``chosen``: those who may be attackers are left out still."""
    vectors = drawn(8)[:7]
    vectors[3], vectors[5] = 1e6, -1e6
    found = Krum(attackers=2, chosen=8).combine(held(vectors))
    assert found == pytest.approx(np.delete(vectors, [3, 5], axis=0).mean(axis=0), rel=1e-5, abs=1e-5)


def test_a_negative_zero_is_zero():
    """Sorting does not tell them apart, so their bits must be equal beforehand."""
    values = np.array([[-0.0], [0.0], [-0.0]], np.float32)
    (column,) = held(values).columns()
    assert column[1].tobytes() == bytes(12)


def test_distances_are_those_of_the_vectors():
    """Of any number of elements, a power of two or not."""
    for size in (1, 2, 3, 5, 4096, 4099, 9001):
        vectors = np.random.default_rng(size).standard_normal((3, size)).astype(np.float32)
        wanted = ((vectors[:, None].astype(float) - vectors[None]) ** 2).sum(axis=2)
        assert squared_distances(held(vectors)) == pytest.approx(wanted, rel=1e-12)


def test_what_cannot_be_is_refused():
    """Half on each side leaves nothing."""
    for build in (
        lambda: TrimmedMean(trim=0.5),
        lambda: TrimmedMean(trim=float("nan")),
        lambda: Krum(attackers=-1),
        lambda: Krum(chosen=0),
    ):
        with pytest.raises(ConfigError):
            build()


@pytest.mark.parametrize("codec", ["float32", "int8", "eden(bits=1)"])
@pytest.mark.parametrize("rule", RULES)
def test_versions_by_such_a_rule_replay(begin, small_rules, tmp_path, rule, codec):
    """Live, killed in the middle and begun again, and audited: the same bits."""
    rules = replace(small_rules, codec=codec, aggregator=rule[0], aggregator_options=rule[1])
    through, restarted = begin(tmp_path / "a", rules), begin(tmp_path / "b", rules)
    for _ in range(2):
        for history in (through, restarted):
            history.take(4, codec=codec)
        restarted.open = restarted.reopen()
        for history in (through, restarted):
            history.take(3, codec=codec)
        assert through.close().digest == restarted.close().digest
    through.store.close()
    report = audit(tmp_path / "a")
    assert (report.versions_checked, report.versions_ok) == (2, 2), report.faults


@pytest.mark.parametrize(("name", "options"), RULES)
def test_memory_does_not_grow_with_updates_times_the_model(name, options):
    """12 updates of a million parameters are 48 MB; what is held at once is one model and some columns."""
    size = 1 << 20
    found = HeldUpdates(size)
    piece = np.ones(1 << 16, np.float32)
    tracemalloc.start()
    try:
        for update in range(12):
            for _ in range(0, size, len(piece)):
                found.put(piece * np.float32(update))
            found.end(np.float32(1))
        made(name, options).combine(found)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20
