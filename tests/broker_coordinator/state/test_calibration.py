"""Cached update calibration, beside plain NumPy with every update in memory."""

from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.aggregation.rules import ClipRule, DampingRule
from broker_coordinator.aggregation.scalars import from_raw
from broker_coordinator.aggregation.version_state import CACHE_SLOT
from broker_coordinator.books.audit import audit
from broker_coordinator.books.retention import RetentionPolicy, prune
from fl_protocol.codec import codec_for, codec_seed, decode
from fl_protocol.errors import ConfigError

AGE = 3
DEVICES = ["a b c", "a b d", "b e", "a a f", "c", "d a", "b c", "e f", "a b", "c d"]
"""Who sends into which version; twice for two updates of one device."""


@pytest.fixture(params=[32, 64])
def calibrated(request, small_rules):
    """The rules, with either sum; no version's step is damped, so that the reference stays short."""
    return replace(
        small_rules,
        aggregator="ca2fl",
        aggregator_options={"age": AGE, "sum_bits": request.param},
        damping=DampingRule(enabled=False),
    )


def send(history, names, codec="float32"):
    """One update of each named device; what was folded, times its scale."""
    found = []
    for name in names:
        # A device counts once for a base: a second update of a version is of an older one.
        again = sum(1 for known, _ in found if known == name)
        base = history.store.version(history.version.number - again)
        update = history.next(base, device=name, codec=codec)
        row = history.accept(update)
        assert history.open.add(row)
        seed = codec_seed(update.update_id)
        values = decode(codec_for(codec), update.payload, history.rules.layout, seed)
        found.append((name, from_raw(row.scale) * values.astype(np.float64)))
    return found


class Reference:
    """The paper's algorithm over the devices seen, whose mean stands for others; forgets after ``AGE``."""

    def __init__(self, weights):
        self.x = weights.astype(np.float64)
        self.cache = {}
        self.number = 0

    def version(self, updates):
        """Take one step."""
        known = {name: h for name, (h, made) in self.cache.items() if made > self.number - AGE}
        mean = sum(known.values()) / len(known) if known else 0
        self.x += mean + sum(d - known.get(name, mean) for name, d in updates) / len(updates)
        self.number += 1
        self.cache |= {name: (d, self.number) for name, d in updates}


@pytest.mark.parametrize("codec", ["float32", "eden(bits=1)"])
def test_the_paper_s_steps(begin, calibrated, codec):
    """Ten versions: devices that stay away are stood for, for three versions; then they are forgotten."""
    history = begin(rules=replace(calibrated, codec=codec))
    reference = Reference(history.open.state.master)
    for names in DEVICES:
        reference.version(send(history, names.split(), codec))
        history.close()
        assert history.open.state.master == pytest.approx(reference.x, abs=1e-4)
    known = [h for h, made in reference.cache.values() if made >= 8]
    slots = [slot for name, slot in history.open.state.slots.items() if name.startswith(CACHE_SLOT)]
    expired = [h for h, made in reference.cache.values() if made == 7]
    assert sum(slots) == pytest.approx(sum(known) + sum(expired), abs=1e-3)


def test_the_same_bits_after_a_crash_a_pruning_and_in_an_audit(begin, calibrated, tmp_path):
    """Cached payloads outlive their own version's replay: they are spared while one is called upon."""
    through, broken = begin(tmp_path / "a", calibrated), begin(tmp_path / "b", calibrated)
    policy = RetentionPolicy(versions=1)
    for names in DEVICES:
        first, *others = names.split()
        for history in (through, broken):
            send(history, [first])
        broken.store.close()
        numbers, broken = broken.numbers, begin(tmp_path / "b", calibrated)
        broken.numbers = numbers
        for history in (through, broken):
            for other in others:
                if other != first:
                    send(history, [other])
        assert through.close().digest == broken.close().digest
        spare = calibrated.cached_versions
        prune(broken.store, broken.payloads, broken.states, policy, spare=spare)
    for history in (through, broken):
        history.store.close()
    for folder, checked in (("a", 10), ("b", 1)):
        report = audit(tmp_path / folder)
        assert (report.versions_checked, report.versions_ok) == (checked, checked), report.faults


def test_it_begins_in_the_middle_and_with_another_age(begin, calibrated, tmp_path):
    """Where a state has no sum of that age it is added up from the journal, and versions replay."""
    plain = replace(calibrated, aggregator="mean", aggregator_options={})
    for rules, names in (
        (plain, "a b"),
        (plain, "c"),
        (calibrated, "a d"),
        (replace(calibrated, aggregator_options={"age": 2, "sum_bits": 64}), "b"),
        (plain, "a"),
        (calibrated, "c"),
    ):
        history = begin(tmp_path / "a", rules)
        history.numbers = 10 * (history.version.number + 1)
        send(history, names.split())
        history.close()
        history.store.close()
    report = audit(tmp_path / "a")
    assert (report.versions_checked, report.versions_ok) == (6, 6), report.faults


def test_what_it_was_made_of_is_spared_when_the_rule_has_changed(begin, calibrated, tmp_path):
    """Its last versions replay until they are pruned themselves; then what they called upon goes, too."""
    plain = replace(calibrated, aggregator="mean", aggregator_options={})
    for rules, names in (
        (calibrated, "a"),
        (calibrated, "b"),
        (calibrated, "a b"),
        (plain, "a"),
        (plain, "b"),
    ):
        history = begin(tmp_path / "a", rules)
        history.numbers = 10 * (history.version.number + 1)
        send(history, names.split())
        history.close()
        policy = RetentionPolicy(versions=3)
        prune(history.store, history.payloads, history.states, policy, spare=rules.cached_versions)
        history.store.close()
    report = audit(tmp_path / "a")
    assert (report.versions_checked, report.versions_ok) == (3, 3), report.faults
    history = begin(tmp_path / "a", plain)
    prune(history.store, history.payloads, history.states, RetentionPolicy(versions=2))
    assert [number for number, _ in history.store.payload_bytes()] == [4, 5]
    history.store.close()


def test_equal_updates_are_one(begin, calibrated):
    """Identity: whoever sends it, now or before, the step is the update they all agree on."""
    history = begin(rules=calibrated)
    delta = np.linspace(-1, 1, history.rules.layout.size, dtype=np.float32)
    for names in ("abc", "cd", "a"):
        before = history.open.state.master
        for name in names:
            history.open.add(history.accept(history.next(device=name, delta=delta)))
        history.close()
        assert history.open.state.master - before == pytest.approx(delta, abs=1e-5)


def test_what_was_added_and_taken_away_again_leaves_no_trace(begin, small_rules):
    """An update a million times the others', long forgotten: of float32 its roundings would stay for ever,
    and be in every step."""
    rules = replace(
        small_rules,
        aggregator="ca2fl",
        aggregator_options={"age": AGE, "sum_bits": 64},
        damping=DampingRule(enabled=False),
        clip=ClipRule(enabled=False),
    )
    history = begin(rules=rules)
    size = rules.layout.size
    deltas = [np.full(size, np.float32(0.1 + number / 70)) for number in range(9)]
    deltas[1] = np.full(size, np.float32(3e5))
    for number, delta in enumerate(deltas):
        history.open.add(history.accept(history.next(device=f"d{number}", delta=delta)))
        history.close()
    kept = [np.float64(delta[0]) for delta in deltas[-AGE - 1 :]]
    slots = history.open.state.slots
    assert slots[f"{CACHE_SLOT}{AGE}:high"] + np.float64(0) == pytest.approx(sum(kept), rel=1e-7)
    total = slots[f"{CACHE_SLOT}{AGE}:high"].astype(np.float64) + slots[f"{CACHE_SLOT}{AGE}:low"]
    assert total == pytest.approx(sum(kept), rel=1e-9)


def test_a_journal_of_a_float32_sum_replays_by_it_and_goes_on_in_float64(begin, small_rules, tmp_path):
    """Rules that name no ``sum_bits`` are an older release's: its versions keep their bits. The first of
    the new rules adds the sum up from the journal."""
    older = replace(small_rules, aggregator="ca2fl", aggregator_options={"age": AGE})
    newer = replace(older, aggregator_options={"age": AGE, "sum_bits": 64})
    for rules, names in ((older, "a b"), (older, "b c"), (newer, "a"), (newer, "c d")):
        history = begin(tmp_path / "a", rules)
        history.numbers = 10 * (history.version.number + 1)
        send(history, names.split())
        history.close()
        slots = sorted(history.open.state.slots)
        one = f"{CACHE_SLOT}{AGE}"
        assert slots == ([one] if rules is older else [f"{one}:high", f"{one}:low"])
        history.store.close()
    report = audit(tmp_path / "a")
    assert (report.versions_checked, report.versions_ok) == (4, 4), report.faults


def test_a_new_epoch_adds_it_up_anew(begin, calibrated):
    """A version that was made of no updates expires none: the sum is left behind."""
    history = begin(rules=calibrated)
    send(history, ["a", "b"])
    history.close()
    assert history.open.state.slots
    assert not history.open.state.reopened(2).slots


def test_without_a_journal_it_is_refused(calibrated, history):
    """It could only forget."""
    with pytest.raises(ConfigError, match="journal"):
        Fold(calibrated, history.open.state)
