"""Buffers in the fold: averaged past the server optimizer, and settled however late they come."""

import hashlib
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.aggregation import optimizer_registry, server_optimizer
from broker_coordinator.aggregation.appraisal import Appraisal, appraise
from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.aggregation.rules import ClipRule, FoldRules
from broker_coordinator.aggregation.running_statistics import FEWEST, MOST_HELD, StatisticsMean
from broker_coordinator.aggregation.scalars import from_raw, to_raw
from broker_coordinator.aggregation.version_state import MOST_REMEMBERED, VersionState
from broker_coordinator.books.audit import audit
from broker_coordinator.books.backup import back_up
from broker_coordinator.books.export import export_version
from broker_coordinator.storage.records import AcceptedUpdate, Refusal
from fl_protocol.codec import HIGHEST_BUFFER, codec_for, codec_seed, decode
from fl_protocol.errors import LayoutError, StorageError
from fl_protocol.layout import TensorLayout
from fl_protocol.version import VersionId

LAYOUT = TensorLayout.of([("w", (33, 40)), ("mean", (5,), "buffer"), ("var", (5,), "buffer")])
RULES = FoldRules(layout=LAYOUT, codec="float32", max_examples=1000)
BASE = VersionId(epoch=1, number=0, digest=b"d" * 16)
CODECS = ["float32", "int8", "eden(bits=1)", "eden(bits=1,keep=0.25)"]


def delta_of(weights: float, buffers: float) -> np.ndarray:
    """A delta that is constant in each part."""
    return np.repeat(np.array([weights, buffers], np.float32), [LAYOUT.weight_size, LAYOUT.buffer_size])


def parts(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and buffers."""
    return vector[: LAYOUT.weight_size], vector[LAYOUT.weight_size :]


def initial(**changes) -> VersionState:
    """Version 0 with everything at 1."""
    state = VersionState.initial(
        np.ones(LAYOUT.size, np.float32), fingerprint=LAYOUT.fingerprint, buffer_size=LAYOUT.buffer_size
    )
    return replace(state, **changes)


def row_of(update, state: VersionState, rules: FoldRules) -> AcceptedUpdate:
    """An update as the journal would have it."""
    appraisal = appraise(
        update.update_id, update.header, update.payload, device=update.device, state=state, rules=rules
    )
    assert isinstance(appraisal, Appraisal)
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


@pytest.mark.parametrize("codec", CODECS)
def test_buffers_are_averaged_with_weights_that_add_up_to_one(begin, codec):
    """sum(n s d) / sum(n s) of what arrived, against a plain reference in float64."""
    history = begin(rules=RULES)
    before = history.open.state.master
    updates = [*history.take(2, codec=codec), history.next(codec=codec)]
    row = replace(history.accept(updates[-1]), scale=to_raw(np.float32(0.25)))
    assert history.open.add(row)
    rows = [*list(history.store.waiting())[:2], row]
    shares = [float(from_raw(row.weight)) * float(from_raw(row.scale)) for row in rows]
    decoded = [
        decode(codec_for(codec), update.payload, LAYOUT, codec_seed(update.update_id)) for update in updates
    ]
    mean = sum(share * parts(d)[1].astype(np.float64) for share, d in zip(shares, decoded, strict=True))
    history.close()
    moved = parts(history.open.state.master)[1] - parts(before)[1]
    assert moved == pytest.approx(mean / sum(shares), abs=1e-5)


def test_a_late_update_says_where_its_device_arrived(begin):
    """Its weights move the model by less; its buffers are its base's and the delta, not the newest's."""
    history = begin(rules=RULES)
    first, old = history.version, history.open.state.master
    history.take(delta=delta_of(1, 1))
    history.close()
    before = history.open.state.master
    assert history.open.add(history.accept(history.next(first, delta=delta_of(1, 3))))
    history.close()
    assert parts(history.open.state.master - before)[0] == pytest.approx(2**-0.5, abs=1e-6)
    assert parts(history.open.state.master - old)[1] == pytest.approx(3, abs=1e-6)


def test_updates_older_than_the_state_remembers_leave_buffers_alone(make_update):
    """Their weights still count; buffers that nobody reports stay as they are."""
    past = np.ones((MOST_REMEMBERED, LAYOUT.buffer_size), np.float32)
    state = initial(number=100, past_buffers=past)
    for number, moved in ((100 - MOST_REMEMBERED, 2), (99 - MOST_REMEMBERED, 1)):
        fold = Fold(RULES, state)
        update = make_update(1, replace(BASE, number=number), layout=LAYOUT, delta=delta_of(1, 1))
        fold.add(row_of(update, state, RULES), update.payload)
        weights, buffers = parts(fold.close().master)
        assert np.unique(buffers).tolist() == [moved]
        assert weights.min() > 1


def test_a_state_remembers_the_buffers_of_the_versions_before(begin):
    """The oldest first, no more than it should, over a recovered epoch too."""
    state, numbers = initial(), range(1, MOST_REMEMBERED + 4)
    for number in numbers:
        master = np.full(LAYOUT.size, number, np.float32)
        state = replace(state.reopened(epoch=number), master=master)
    kept = range(state.number - MOST_REMEMBERED, state.number + 1)
    assert [int(state.buffers_of(number)[0]) for number in kept] == list(kept)
    assert state.buffers_of(kept[0] - 1) is None
    assert state.buffers_of(state.number + 1) is None
    assert VersionState.unpack(state.pack()).pack() == state.pack()


def test_the_server_optimizer_does_not_see_buffers(make_update, monkeypatch):
    """Its vectors are those of the weights, and its learning rate is none of the buffers' business."""
    seen = []

    class Watched(server_optimizer.Sgd):
        slots = ("m",)

        def step(self, master, slots, aggregate):
            seen.append((len(master), len(slots["m"]), len(aggregate)))
            moved, _ = super().step(master, {}, aggregate)
            return moved, slots

    monkeypatch.setitem(optimizer_registry.SERVER_OPTIMIZERS, "sgd", Watched)
    rules = replace(RULES, server_lr=0.125)
    state = initial(slots={"m": np.zeros(LAYOUT.weight_size, np.float32)})
    fold = Fold(rules, state)
    update = make_update(1, BASE, layout=LAYOUT, delta=delta_of(1, 1))
    fold.add(row_of(update, state, rules), update.payload)
    closed = fold.close()
    assert seen == [(LAYOUT.weight_size,) * 3]
    assert [part.tolist() for part in map(np.unique, parts(closed.master))] == [[1.125], [2]]
    assert VersionState.unpack(closed.pack()).pack() == closed.pack()


def test_the_norm_is_that_of_the_weights(make_update):
    """Buffers have units of their own: a large variance does not make an update a suspicious one."""
    plain, large = (make_update(1, BASE, layout=LAYOUT, delta=delta_of(0.5, b)) for b in (0, 6e4))
    assert row_of(plain, initial(), RULES).norm == row_of(large, initial(), RULES).norm
    known = initial(norms=np.full(30, 0.1, np.float32), witnesses=np.arange(30, dtype=np.uint32))
    clipped = row_of(large, known, RULES)
    assert from_raw(clipped.scale) < 0.02
    fold = Fold(RULES, known)
    fold.add(clipped, large.payload)
    weights, buffers = parts(fold.close().master - known.master)
    assert np.abs(weights).max() < 0.01
    assert buffers == pytest.approx(6e4, rel=1e-3)


def test_what_would_overflow_the_sum_of_buffers_is_refused(make_update, monkeypatch):
    """A weight that a norm of 0 makes harmless for the weights is not for a buffer."""
    rules = replace(RULES, max_examples=1 << 62)
    update = make_update(1, BASE, layout=LAYOUT, delta=delta_of(0, 1))
    heavy = replace(
        update, header=replace(update.header, num_examples=1 << 50, steps_done=1 << 30, steps_planned=1)
    )
    verdict = appraise(heavy.update_id, heavy.header, heavy.payload, device="d", state=initial(), rules=rules)
    assert isinstance(verdict, Refusal)
    assert verdict.reason == "not_finite"


def test_a_rebuilt_fold_and_a_replay_give_the_same_bits(begin, tmp_path):
    """Killed in the middle of a version, audited, copied and audited again: one digest."""
    through, restarted = (begin(tmp_path / name, RULES) for name in "ab")
    for history in (through, restarted):
        history.take(3, codec="eden(bits=1,keep=0.25)")
    restarted.store.close()
    again = begin(tmp_path / "b", RULES)
    again.numbers = 3
    for history in (through, again):
        history.take(2)
    assert through.close().digest == again.close().digest
    back_up(tmp_path / "b", tmp_path / "copy")
    for folder in (tmp_path / "b", tmp_path / "copy"):
        report = audit(folder)
        assert (report.versions_checked, report.versions_ok, list(report.faults)) == (1, 1, [])


@pytest.mark.parametrize("published", [False, True])
def test_an_export_names_buffers_too(begin, tmp_path, published):
    """They are exact in both: published weights are coded, buffers are not."""
    history = begin(rules=RULES)
    history.take(2)
    history.close()
    exported = export_version(
        history.store, history.folder, tmp_path / "out.npz", published=published, number=1
    )
    with np.load(exported.path) as arrays:
        assert list(arrays) == ["w", "mean", "var"]
        both = np.concatenate([arrays["mean"], arrays["var"]])
    assert both.tobytes() == parts(history.open.state.master)[1].tobytes()


def test_late_statistics_settle_without_overshoot(make_update):
    """64 updates in flight at K = 4, each with the whole way from 1 to 0: nothing falls below 0.

    Were late deltas added up, the first versions alone would go 16 times that way.
    """
    rules, state = replace(RULES, clip=ClipRule(enabled=False)), initial()
    flying = deque([(0, state.master)] * 64)
    found = []
    for version in range(64):
        fold = Fold(rules, state)
        for slot in range(4):
            base, seen = flying.popleft()
            delta = np.concatenate([np.zeros(LAYOUT.weight_size, np.float32), -0.9 * parts(seen)[1]])
            update = make_update(4 * version + slot, replace(BASE, number=base), layout=LAYOUT, delta=delta)
            fold.add(row_of(update, state, rules), update.payload)
        state = fold.close()
        flying.extend([(state.number, state.master)] * 4)
        found.append(parts(state.master)[1])
    assert np.min(found) > 0
    assert np.max(found[-1]) < 1e-3


def test_limited_deltas_do_not_end_the_fleet(make_update):
    """The largest that a payload may carry, with the largest weight: the version is finite."""
    rules, state = replace(RULES, max_examples=1 << 40), initial()
    fold = Fold(rules, state)
    for number in range(20):
        update = make_update(number, BASE, layout=LAYOUT, delta=delta_of(1, 1e6), num_examples=1 << 40)
        fold.add(row_of(update, state, rules), update.payload)
    assert parts(fold.close().master)[1] == pytest.approx(1 + HIGHEST_BUFFER)


def mean_of(arrivals: np.ndarray, *, limited: bool = True) -> np.ndarray:
    """What becomes of buffers that were 1, where devices arrive at each row of ``arrivals``."""
    statistics = StatisticsMean(initial(), LAYOUT, limited=limited)
    for arrival in arrivals:
        statistics.begin(0, np.float32(2))
        for start in (0, 3):
            statistics.accumulate(start, arrival[start : start + 3 if start == 0 else None] - np.float32(1))
    return statistics.finalize()


def honest(count: int) -> np.ndarray:
    """Arrivals around 2, 3, ..., 11: float32[count, 10]."""
    draw = np.random.default_rng(count)
    return (np.arange(2, 12) + 0.1 * draw.standard_normal((count, 10))).astype(np.float32)


@pytest.mark.parametrize("count", [FEWEST, 5, 8, MOST_HELD + 40])
@pytest.mark.parametrize("reported", [HIGHEST_BUFFER, -HIGHEST_BUFFER])
def test_one_device_cannot_move_statistics_beyond_its_weight(count, reported):
    """Whatever it reports; the others' mean is hardly another. Without limits it has all it wants."""
    arrivals = honest(count)
    arrivals[1] = reported
    moved = mean_of(arrivals) - np.delete(arrivals, 1, axis=0).mean(axis=0)
    assert np.abs(moved).max() < 0.1 * 16 / count + 0.01
    assert np.abs(mean_of(arrivals, limited=False)).min() > 100


def test_devices_that_differ_as_devices_do_are_averaged_as_they_are():
    """Limits are wide: to the last bit the plain mean."""
    for count in (3, 16, 64):
        assert mean_of(honest(count)).tobytes() == mean_of(honest(count), limited=False).tobytes()


def test_what_few_devices_see_is_not_taken_from_them():
    """A feature that is constant on all others has the limits that are usual in its tensor."""
    arrivals = honest(12)
    arrivals[:, 2] = 0
    arrivals[3, 2] = 0.3
    assert mean_of(arrivals)[2] == pytest.approx(0.3 / 12, abs=1e-5)


def test_those_that_come_late_in_a_version_keep_to_the_same_limits():
    """Memory ends somewhere: the first so many decide."""
    arrivals = honest(MOST_HELD + 1)
    arrivals[-1] = HIGHEST_BUFFER
    assert np.abs(mean_of(arrivals) - np.arange(2, 12)).max() < 0.05


def test_an_update_that_weighs_nothing_has_no_say_in_the_limits():
    """Else a device could send empty updates under many names."""
    statistics = StatisticsMean(initial(), LAYOUT, limited=True)
    for number, arrival in enumerate(honest(5)):
        for moved, share in ((arrival - 1, 1.0), (np.full(10, 1e4 + number, np.float32), 0.0)):
            statistics.begin(0, np.float32(share))
            statistics.accumulate(0, moved.astype(np.float32))
    assert statistics.finalize() == pytest.approx(honest(5).mean(axis=0), abs=1e-5)


def test_a_state_says_where_its_buffers_begin():
    """The form is frozen; a state whose buffers begin elsewhere does not fold."""
    state = VersionState(
        epoch=2,
        number=7,
        fingerprint=b"finger8.",
        master=np.arange(5, dtype=np.float32),
        slots={"v": np.full(3, 2, np.float32), "m": np.full(3, 1, np.float32)},
        norms=np.array([1, 2, 3], np.float32),
        witnesses=np.array([4, 5, 6], np.uint32),
        buffer_size=2,
        past_buffers=np.array([[7, 8], [9, 10]], np.float32),
    )
    back = VersionState.unpack(state.pack())
    assert back.pack() == state.pack()
    assert (back.slots["v"].tolist(), back.past_buffers.tolist()) == ([2, 2, 2], [[7, 8], [9, 10]])
    assert state.digest().hex() == "ca0c52bd59009f18a8233514b0fda0348f7cfb31ce9360d182ad40da384a22c7"
    assert hashlib.sha256(state.pack()).digest() == state.digest()
    with pytest.raises(StorageError):
        VersionState.unpack(state.pack().replace(b"\xa1h\x02", b"\xa1h\x03"))
    with pytest.raises(LayoutError):
        Fold(RULES, replace(initial(), buffer_size=0))


def test_rules_with_buffers_come_back_from_their_text():
    """The layout's kinds are part of the rules, and of their name."""
    assert FoldRules.from_json(RULES.to_json()) == RULES
    plain = replace(RULES, layout=TensorLayout.of([("w", (33, 40)), ("mean", (5,)), ("var", (5,))]))
    assert plain.name != RULES.name
