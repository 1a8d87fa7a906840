"""Staleness, aggregation, server optimizers, rules, the defence and appraisal: pure functions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_coordinator.aggregation import appraisal as appraisal_module
from broker_coordinator.aggregation.aggregator import Mean, UpdateContext
from broker_coordinator.aggregation.aggregator_registry import aggregator_for
from broker_coordinator.aggregation.appraisal import Appraisal, appraise, appraise_all
from broker_coordinator.aggregation.defence import clip_factor, extended, witness_of
from broker_coordinator.aggregation.fold import damping
from broker_coordinator.aggregation.optimizer_registry import server_optimizer_for
from broker_coordinator.aggregation.rules import ClipRule, DampingRule, FoldRules, StalenessRule
from broker_coordinator.aggregation.scalars import from_raw, to_raw
from broker_coordinator.aggregation.server_optimizer import Sgd
from broker_coordinator.aggregation.staleness import constant, hinge, polynomial
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.storage.records import Refusal
from fl_protocol.codec import codec_for, codec_seed, decode
from fl_protocol.errors import ConfigError, StorageError
from fl_protocol.layout import TensorLayout
from fl_protocol.version import VersionId

WEIGHTS = [constant(), polynomial(0.5), polynomial(1.0), hinge(4, 0.3)]
BASE = VersionId(epoch=1, number=0, digest=b"d" * 16)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_fresh_update_counts_fully(weight):
    """Staleness starts at 0: one peer counts it from 1 and halves every fresh update."""
    assert weight(0) == 1


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_fall_and_stay_positive(weight):
    """Older never counts more, and nothing counts nothing."""
    values = [weight(staleness) for staleness in range(1000)]
    assert all(value.dtype == np.float32 and value > 0 for value in values)
    assert values == sorted(values, reverse=True)


def test_staleness_parameters_are_checked():
    """A rule under which old updates would count more is refused."""
    for wrong in (lambda: polynomial(-1), lambda: hinge(-1, 1), lambda: hinge(1, float("nan"))):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(ConfigError, match="unknown staleness"):
        StalenessRule(kind="linear").weight()
    assert StalenessRule(kind="hinge", grace=2, slope=1.0).weight()(3) == 0.5


def _mean(pieces: list[tuple[list[float], float]]) -> np.ndarray:
    rule = Mean()
    state = rule.init(len(pieces[0][0]))
    for values, weight in pieces:
        vector = np.array(values, np.float32)
        for start in range(0, len(vector), 2):
            rule.accumulate(state, start, vector[start : start + 2].copy(), np.float32(weight))
    return rule.finalize(state)


def test_the_mean_weighs_by_examples():
    """sum(n d) / sum(n), and each update's weight counts once however many pieces it came in."""
    assert _mean([([1, 2, 3, 4, 5], 1), ([5, 6, 7, 8, 9], 3)]) == pytest.approx([4, 5, 6, 7, 8])


def test_equal_updates_are_their_own_mean():
    """Identity, and nothing at all is zeros."""
    assert _mean([([1, -2], 7)] * 5) == pytest.approx([1, -2])
    assert _mean([([1, -2], 0)]).tolist() == [0, 0]


def test_weights_are_examples_times_the_share_of_steps(make_update):
    """Half the steps is half the weight."""
    header = make_update(0, BASE, num_examples=80, steps_done=1, steps_planned=2).header
    context = UpdateContext(device="d", staleness=3, norm=np.float32(1))
    assert Mean().weigh(header, context) == 40
    with pytest.raises(ConfigError, match="unknown aggregator"):
        aggregator_for("geometric")


def test_sgd_moves_by_the_learning_rate():
    """The master's own array is left alone."""
    master = np.array([1, 2], np.float32)
    moved, slots = Sgd(0.5).step(master, {}, np.array([2, -2], np.float32))
    assert (moved.tolist(), slots, master.tolist()) == ([2, 1], {}, [1, 2])
    for wrong in (("lion", 1.0), ("sgd", 0.0), ("sgd", float("nan"))):
        with pytest.raises(ConfigError):
            server_optimizer_for(*wrong)


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 5, 9, 20, 80])
def test_a_damped_step_stays_below_the_stability_bound(delay):
    """x[t+1] = x[t] - a x[t-m] is stable below 2 sin(pi / (4 m + 2)); small steps are left alone."""
    bound = 2 * math.sin(math.pi / (4 * delay + 2))
    for step in (0.01, 0.5, 1.0):
        damped = step * damping(step, delay, DampingRule())
        assert damped <= bound
        assert damped == pytest.approx(step) or damped > 0.85 * bound
    assert damping(1.0, delay, DampingRule(enabled=False)) == 1
    assert damping(0.0, delay, DampingRule()) == 1


def test_rules_come_back_from_their_text(small_rules):
    """One set of rules has one name; any change gives another."""
    assert FoldRules.from_json(small_rules.to_json()) == small_rules
    assert replace(small_rules, server_lr=0.5).name != small_rules.name
    other = replace(small_rules, layout=TensorLayout.of([("other", (3,))]))
    assert other.name != small_rules.name
    for text in ("{", "[]", "{}", '{"layout":[],"staleness":{},"clip":{},"damping":{}}'):
        with pytest.raises(StorageError, match="cannot be read"):
            FoldRules.from_json(text)


@given(st.floats(width=32, allow_nan=False))
def test_scalars_keep_their_bits(value):
    """Through the journal and back."""
    assert from_raw(to_raw(np.float32(value))).tobytes() == np.float32(value).tobytes()


def _state(norms: list[float], devices: int) -> VersionState:
    state = VersionState.initial(np.zeros(3, np.float32), fingerprint=b"f" * 8)
    witnesses = np.array([at % devices for at in range(len(norms))], np.uint32)
    return replace(state, norms=np.array(norms, np.float32), witnesses=witnesses)


def test_long_updates_are_clipped_to_twice_the_median():
    """Ten times the median counts a fifth; anything up to twice is left alone."""
    state = _state([1.0] * 19 + [50.0], devices=5)
    assert clip_factor(np.float32(10), state, ClipRule()) == np.float32(0.2)
    assert clip_factor(np.float32(2), state, ClipRule()) == 1
    assert clip_factor(np.float32(10), state, ClipRule(enabled=False)) == 1


@pytest.mark.parametrize("state", [_state([1.0] * 19, 5), _state([1.0] * 64, 4), _state([0.0] * 30, 6)])
def test_the_defence_is_off_until_it_knows_the_fleet(state):
    """Fewer than 20 updates, fewer than 5 devices, or a median of nothing: no clipping."""
    assert clip_factor(np.float32(10), state, ClipRule()) == 1


def test_the_window_keeps_the_newest():
    """64 norms, the newest last, each with its device's tag."""
    state = _state([1.0] * 60, devices=5)
    norms, witnesses = extended(state, [np.float32(n) for n in range(10)], [witness_of("d")] * 10, ClipRule())
    assert (len(norms), len(witnesses)) == (64, 64)
    assert norms[-10:].tolist() == list(range(10))
    assert set(witnesses[-10:].tolist()) == {witness_of("d")}


def _appraise(update, rules, state=None):
    state = state or VersionState.initial(
        np.zeros(rules.layout.size, np.float32), fingerprint=rules.layout.fingerprint
    )
    return appraise(
        update.update_id, update.header, update.payload, device=update.device, state=state, rules=rules
    )


def test_an_update_is_appraised_once(make_update, small_rules):
    """Weight from examples (capped) and steps, scale from staleness, norm over the expected inflation."""
    update = make_update(1, BASE, num_examples=5000, steps_done=2, steps_planned=4)
    state = VersionState.initial(
        np.zeros(small_rules.layout.size, np.float32), fingerprint=small_rules.layout.fingerprint
    )
    appraisal = _appraise(update, small_rules, replace(state, number=3))
    assert isinstance(appraisal, Appraisal)
    assert from_raw(appraisal.weight) == 500
    assert from_raw(appraisal.scale) == np.float32(0.5)
    assert appraisal.staleness == 3
    delta = np.frombuffer(update.payload, "<f4")
    assert from_raw(appraisal.norm) == pytest.approx(np.linalg.norm(delta), rel=1e-5)


@pytest.mark.parametrize("codec", ["int8", "eden(bits=1)", "eden(bits=1,keep=0.25)"])
def test_norms_of_all_codecs_can_be_compared(make_update, small_rules, codec):
    """Divided by the codec's expected inflation they are about the delta's own."""
    delta = np.random.default_rng(7).standard_normal(small_rules.layout.size).astype(np.float32)
    appraisal = _appraise(make_update(1, BASE, codec=codec, delta=delta), small_rules)
    assert from_raw(appraisal.norm) == pytest.approx(np.linalg.norm(delta), rel=0.15)


@pytest.mark.parametrize("codec", ["float32", "int8", "eden(bits=1)"])
def test_many_updates_are_appraised_as_one_by_one(make_update, small_rules, codec):
    """The same scalars and the same decoded bits, in order; a broken one is refused, and only that."""
    rules = replace(small_rules, codec=codec)
    state = VersionState.initial(
        np.zeros(rules.layout.size, np.float32), fingerprint=rules.layout.fingerprint
    )
    updates = [make_update(number, BASE, codec=codec, num_examples=number + 1) for number in range(40)]
    updates[13] = replace(updates[13], payload=b"\xff" * len(updates[13].payload))
    for batch in (updates, updates[:13]):
        verdicts = appraise_all(batch, state=state, rules=rules)
        for update, verdict in zip(batch, verdicts, strict=True):
            alone = _appraise(update, rules, state)
            if update is updates[13]:
                assert verdict == alone
                continue
            assert replace(verdict, pieces=None, norm=b"") == replace(alone, norm=b"")
            assert from_raw(verdict.norm) == pytest.approx(from_raw(alone.norm), rel=1e-6)
            decoded = np.concatenate([values for _, values in verdict.pieces])
            seed = codec_seed(update.update_id)
            assert decoded.tobytes() == decode(codec_for(codec), update.payload, rules.layout, seed).tobytes()


def test_what_a_batch_keeps_is_bounded(make_update, small_rules, monkeypatch):
    """Beyond it updates are decoded twice instead: memory does not grow with the batch."""
    monkeypatch.setattr(appraisal_module, "MOST_KEPT", 2 * small_rules.layout.size)
    monkeypatch.setattr(appraisal_module, "_DECODED_TOGETHER", 1)
    state = VersionState.initial(
        np.zeros(small_rules.layout.size, np.float32), fingerprint=small_rules.layout.fingerprint
    )
    updates = [make_update(number, BASE, codec=small_rules.codec) for number in range(4)]
    verdicts = appraise_all(updates, state=state, rules=small_rules)
    assert [verdict.pieces is not None for verdict in verdicts] == [True, True, False, False]


def test_what_does_not_decode_is_refused(make_update, small_rules):
    """A wrong length, a NaN, and a payload that would overflow the sum."""
    good = make_update(1, BASE)
    short = replace(good, payload=good.payload[:-1])
    nan = replace(good, payload=b"\xff" * len(good.payload))
    huge = make_update(1, BASE, delta=np.full(small_rules.layout.size, 2.0**99, np.float32))
    verdicts = [_appraise(update, small_rules) for update in (short, nan, huge)]
    assert all(isinstance(verdict, Refusal) for verdict in verdicts)
    assert [verdict.reason for verdict in verdicts] == ["codec", "codec", "not_finite"]
