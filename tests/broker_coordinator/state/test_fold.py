"""The fold: the same bits live, after a crash, and in a replay."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.aggregation import aggregator, aggregator_registry
from broker_coordinator.aggregation.appraisal import appraise
from broker_coordinator.aggregation.fold import Fold, OpenVersion
from broker_coordinator.aggregation.rules import ClipRule, DampingRule
from broker_coordinator.aggregation.scalars import from_raw, to_raw
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.storage.records import AcceptedUpdate
from fl_protocol.codec import codec_for, codec_seed, decode
from fl_protocol.errors import AggregatorError, CodecError, LayoutError
from fl_protocol.version import VersionId

CODECS = ["float32", "int8", "eden(bits=1)", "eden(bits=1,keep=0.25)"]


@pytest.mark.parametrize("codec", CODECS)
def test_a_version_is_the_mean_on_top_of_the_last(history, codec):
    """master + lr * sum(n s d) / sum(n), against a plain reference in float64."""
    updates = history.take(4, codec=codec)
    layout, before = history.rules.layout, history.open.state.master
    rows = list(history.store.waiting())
    total = sum(
        float(from_raw(row.weight))
        * float(from_raw(row.scale))
        * decode(codec_for(codec), update.payload, layout, codec_seed(update.update_id)).astype(np.float64)
        for row, update in zip(rows, updates, strict=True)
    )
    expected = before + total / sum(float(from_raw(row.weight)) for row in rows)
    history.close()
    assert history.open.state.master == pytest.approx(expected, abs=1e-5)
    assert history.open.state.number == 1


def test_staleness_damps_the_step(history):
    """An old update moves the model less: its weight is in the numerator only."""
    first = history.version
    history.take()
    history.close()
    delta = np.ones(history.rules.layout.size, np.float32)
    before = history.open.state.master
    history.open.add(history.accept(history.next(first, delta=delta)))
    history.close()
    assert history.open.state.master - before == pytest.approx(2**-0.5, abs=1e-6)


def test_a_rebuilt_fold_gives_the_same_bits(begin, tmp_path):
    """Killed and started again in the middle of a version, it closes on the same digest."""
    through, restarted = begin(tmp_path / "a"), begin(tmp_path / "b")
    for history in (through, restarted):
        history.take(3, codec="eden(bits=1)")
    restarted.store.close()
    again = begin(tmp_path / "b")
    again.numbers = 3
    assert (again.open.count, again.open.through_seq) == (3, 3)
    for history in (through, again):
        history.take(2)
    assert through.close().digest == again.close().digest


def test_the_order_of_acceptance_is_the_order_of_the_fold(history):
    """An update that comes out of order is a mistake of the caller."""
    rows = [history.accept(history.next()) for _ in range(2)]
    assert history.open.add(rows[1])
    with pytest.raises(ValueError, match="order"):
        history.open.add(rows[0])


def test_what_does_not_fold_is_quarantined(history):
    """A payload that the disk has changed is set aside with its reason; the fold goes on without it."""
    history.take()
    bad = replace(history.accept(history.next()), payload=b"\0" * 5308)
    assert not history.open.add(bad)
    history.take()
    assert history.close().updates == 2
    (row,) = (row for row in history.store.rows() if row.state == "quarantined")
    assert row.accept_seq == bad.accept_seq
    assert "not the one that was accepted" in row.reason


def test_a_payload_file_that_is_gone_is_quarantined(history):
    """A row whose file is missing never folds, and is not tried for ever."""
    update = history.next()
    row = history.accept(update, as_file=True)
    history.payloads.discard([update.update_id])
    assert not history.open.add(row)
    assert history.store.counts().quarantined == 1


class Breaking(aggregator.Mean):
    """Breaks off in the middle of every third update, as a rule of a user's might."""

    calls = 0

    def accumulate(self, state, start, values, weight):
        super().accumulate(state, start, values, weight)
        if start == 0:
            Breaking.calls += 1
            if Breaking.calls == 3:
                raise KeyError("before.loss")


def test_a_rule_that_breaks_off_loses_no_update(begin, tmp_path, monkeypatch):
    """The version stops with the rule's name; with the rule mended it has the bits it would have had."""
    plain = begin(tmp_path / "plain")
    plain.take(4)
    Breaking.calls = 0
    monkeypatch.setitem(aggregator_registry.AGGREGATORS, "mean", Breaking)
    broken = begin(tmp_path / "broken")
    broken.take(4)
    assert "'mean' failed in accumulate: KeyError" in broken.open.fault
    assert broken.open.close() is None
    assert broken.store.counts().waiting == 4
    monkeypatch.undo()
    broken.open = broken.reopen()
    assert not broken.open.fault
    assert broken.close().digest == plain.close().digest


def test_an_update_that_breaks_off_leaves_no_trace(begin, tmp_path):
    """Half of it was added: the fold is rebuilt without it, and has the bits it would have had."""
    plain, broken = begin(tmp_path / "plain"), begin(tmp_path / "broken")
    for history in (plain, broken):
        history.take(2)

    def breaks_off():
        yield 0, np.ones(4, np.float32)
        raise CodecError("the disk")

    assert not broken.open.add(broken.accept(broken.next()), breaks_off())
    plain.numbers = 3
    for history in (plain, broken):
        history.take(1)
        history.close()
    assert broken.open.state.master.tobytes() == plain.open.state.master.tobytes()
    assert broken.store.counts().quarantined == 1


class NotANumber(aggregator.Mean):
    """Divides by nothing."""

    def finalize(self, state):
        return state["total"] * np.float32("nan")


def test_a_fold_that_is_not_finite_makes_no_version(history, monkeypatch):
    """A model of NaN would be the end of the fleet; it is the rule's fault, and its updates wait."""
    monkeypatch.setitem(aggregator_registry.AGGREGATORS, "mean", NotANumber)
    history.open = history.reopen()
    history.take(2)
    assert history.open.close() is None
    assert "'mean' failed in finalize: it gave a value that is not finite" in history.open.fault
    assert history.store.counts().waiting == 2
    monkeypatch.undo()
    history.open = history.reopen()
    history.take(1)
    assert history.close().number == 1


def test_a_state_of_another_layout_is_refused(history):
    """The fingerprint and the length must be the rules'."""
    state = VersionState.initial(np.zeros(3, np.float32), fingerprint=b"12345678")
    with pytest.raises(LayoutError):
        Fold(history.rules, state)


def test_a_fold_that_broke_off_takes_nothing_more(history, monkeypatch):
    """Its sums are worthless, and it says so."""
    Breaking.calls = 2
    monkeypatch.setitem(aggregator_registry.AGGREGATORS, "mean", Breaking)
    fold = Fold(history.rules, history.open.state)
    update = history.next()
    row = history.accept(update)
    with pytest.raises(AggregatorError, match="accumulate"):
        fold.add(row, update.payload)
    assert fold.touched
    with pytest.raises(CodecError, match="broke off"):
        fold.add(row, update.payload)


def test_the_scalars_used_are_the_journalled_ones(history):
    """The fold never computes a weight again: another scale in the row gives another version."""
    update = history.next(delta=np.ones(history.rules.layout.size, np.float32))
    row = replace(history.accept(update), scale=to_raw(np.float32(0.25)))
    fold = Fold(history.rules, history.open.state)
    fold.add(row, update.payload)
    assert fold.close().master - history.open.state.master == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("codec", CODECS)
def test_values_kept_from_the_appraisal_fold_to_the_same_bits(history, codec):
    """Decoded once and folded at once, or decoded again in a replay: one version."""
    kept, again = (Fold(history.rules, history.open.state) for _ in range(2))
    for update in (history.next(codec=codec) for _ in range(3)):
        row = history.accept(update)
        plain, keeping = (
            appraise(
                update.update_id,
                update.header,
                update.payload,
                device=update.device,
                state=history.open.state,
                rules=history.rules,
                keep=keep,
            )
            for keep in (False, True)
        )
        assert plain.pieces is None
        assert from_raw(keeping.norm) == pytest.approx(from_raw(plain.norm), rel=1e-5)
        kept.add_decoded(row, keeping.pieces)
        again.add(row, update.payload)
    assert kept.close().digest() == again.close().digest()


def test_the_defence_learns_from_what_was_folded(history):
    """Norms and devices enter the state with the version, the clip factor then applies to the next."""
    for _ in range(2):
        history.take(10)
        history.close()
    assert len(history.open.state.norms) == 20
    long = history.next(delta=np.full(history.rules.layout.size, 100, np.float32))
    assert from_raw(history.accept(long).scale) < 0.1


def test_many_devices_at_work_do_not_shake_the_model(make_update, small_rules):
    """80 updates in flight at K = 4, each a whole step to where the model should be: it settles.

    The staleness weight alone does not hold it: a step that is 20 versions late overshoots for ever.
    """

    def distances(rules, versions: int) -> list[float]:
        state = VersionState.initial(
            np.ones(rules.layout.size, np.float32), fingerprint=rules.layout.fingerprint
        )
        flying = deque([(0, state.master)] * 80)
        found = []
        for version in range(versions):
            fold = Fold(rules, state)
            for slot in range(4):
                base, seen = flying.popleft()
                update = make_update(
                    4 * version + slot, VersionId(epoch=1, number=base, digest=b"d" * 16), delta=-seen
                )
                fold.add(_row(update, rules, state), update.payload)
            state = fold.close()
            flying.extend([(state.number, state.master)] * 4)
            found.append(float(np.abs(state.master).max()))
        return found

    rules = replace(small_rules, clip=ClipRule(enabled=False))
    damped = distances(rules, 400)
    assert max(damped[-80:]) < 0.3 * max(damped[:80])
    shaken = distances(replace(rules, damping=DampingRule(enabled=False)), 160)
    assert max(shaken[-80:]) > 10 * max(shaken[:80])


def _row(update, rules, state) -> AcceptedUpdate:
    """An update as the journal would have it."""
    appraisal = appraise(
        update.update_id, update.header, update.payload, device=update.device, state=state, rules=rules
    )
    return AcceptedUpdate(
        accept_seq=1,
        update_id=update.update_id,
        device=update.device,
        hash=update.hash,
        header=update.header.pack(),
        base=(update.header.base.epoch, update.header.base.number),
        payload=None,
        weight=appraisal.weight,
        scale=appraisal.scale,
        norm=appraisal.norm,
        staleness=appraisal.staleness,
        state="waiting",
    )


def test_an_empty_close_changes_the_number_only(history):
    """Nothing folded, nothing moved."""
    closed = history.open.close()
    assert closed is not None
    assert (closed.updates, closed.through_seq) == (0, 0)
    assert closed.state.master.tobytes() == history.open.state.master.tobytes()


def test_rebuilding_reads_the_journal_only(history):
    """``OpenVersion`` needs the verbs of ``Journal`` and nothing else of a store."""
    history.take(2)
    state = history.open.state
    assert OpenVersion(history.store, history.rules, state, through_seq=0).count == 2


def test_a_rule_is_given_the_same_pieces_live_and_replayed(history, monkeypatch):
    """A user's rule may depend on where pieces begin: a small model is one, however it came to be decoded."""
    seen: dict[str, list[tuple[int, int]]] = {"kept": [], "again": []}
    update = history.next()
    row = history.accept(update)
    appraisal = appraise(
        update.update_id,
        update.header,
        update.payload,
        device=update.device,
        state=history.open.state,
        rules=history.rules,
        keep=True,
    )
    for name, pieces in seen.items():
        fold = Fold(history.rules, history.open.state)
        monkeypatch.setattr(
            fold._sums,
            "put",
            lambda start, values, weight, pieces=pieces: pieces.append((start, len(values))),
        )
        fold.add_decoded(row, appraisal.pieces) if name == "kept" else fold.add(row, update.payload)
    assert seen["kept"] == seen["again"] == [(0, history.rules.layout.weight_size)]
