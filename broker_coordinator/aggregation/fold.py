"""The fold: accepted updates, in ``accept_seq`` order, onto one version's state, giving the next.

The same code folds live, rebuilds after a crash, and replays for an audit. Each update is decoded in
cache-sized pieces straight into the accumulator: memory is two models and a piece, for any number of
devices; of buffers, which are few, up to 256 updates are held; rules that need all updates at once have them
in a temporary file. Element-wise operations in a fixed order with
float32 scalars give the same bits everywhere.
"""

import hashlib
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.appraisal import cached_codec
from broker_coordinator.aggregation.defence import extended, witness_of
from broker_coordinator.aggregation.rules import DampingRule, FoldRules
from broker_coordinator.aggregation.running_statistics import StatisticsMean
from broker_coordinator.aggregation.scalars import from_raw
from broker_coordinator.aggregation.sums import sums_of
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.progress import Progress, unwatched
from broker_coordinator.storage.records import AcceptedUpdate
from broker_coordinator.storage.store import Journal
from fl_protocol.codec import Piece, codec_seed
from fl_protocol.codec.update_codec import joined
from fl_protocol.errors import AggregatorError, CodecError, LayoutError, StorageError
from fl_protocol.update import UpdateHeader

__all__ = ["ClosedVersion", "Fold", "OpenVersion", "damping"]


class Fold:
    """An accumulator on top of ``state``; ``journal`` is needed by rules that call upon earlier updates,
    ``progress`` hears of the pieces of work that grows with their number.

    Raises:
        ConfigError: the rules name something that does not exist.
        LayoutError: the state is not one of the rules' layout.
    """

    def __init__(
        self,
        rules: FoldRules,
        state: VersionState,
        journal: Journal | None = None,
        progress: Progress = unwatched,
    ) -> None:
        layout = rules.layout
        ours = (layout.fingerprint, layout.size, layout.buffer_size)
        if (state.fingerprint, len(state.master), state.buffer_size) != ours:
            raise LayoutError(f"version {state.number} has another layout than the task")
        self._rules = rules
        self._state = state
        self._optimizer = rules.make_optimizer()
        self._weights = layout.weight_size
        self._sums = sums_of(rules, state, journal, progress)
        self._statistics = StatisticsMean(state, layout, limited=rules.clip.enabled)
        self._count = 0
        # Sums over updates of weight, weight times scale, and weight times staleness.
        self._weight = self._step = self._staleness = 0.0
        self._newest: deque[tuple[bytes, str]] = deque(maxlen=rules.clip.window)
        self.touched = False
        """Whether an ``add`` failed after it had begun to add: this fold is worthless then."""

    @property
    def count(self) -> int:
        """Updates folded."""
        return self._count

    def add(self, update: AcceptedUpdate, payload: bytes) -> None:
        """Fold one update.

        Raises:
            CodecError: the payload is not the one accepted, or does not decode; nothing was added,
                unless ``touched``.
            AggregatorError, StorageError: as ``add_decoded``.
        """
        header, _ = UpdateHeader.unpack(update.header)
        if hashlib.sha256(payload).digest() != header.sha256:
            raise CodecError("the payload is not the one that was accepted: the disk has changed it")
        codec = cached_codec(header.codec)
        codec.check(payload, self._rules.layout)
        pieces = codec.pieces(payload, self._rules.layout, codec_seed(update.update_id))
        self.add_decoded(update, joined(pieces, self._rules.layout))

    def add_decoded(self, update: AcceptedUpdate, pieces: Iterable[Piece]) -> None:
        """Fold one update whose payload was checked and decoded; the pieces, as ``joined`` gives them, are
        used up.

        Raises:
            CodecError: an earlier update broke off.
            AggregatorError: the rule fails; this is not the update's fault.
            StorageError: there is no room to hold it.
        """
        weight, scale = from_raw(update.weight), from_raw(update.scale)
        if self.touched:
            raise CodecError("an earlier update broke off in this fold")
        self.touched = True
        self._sums.begin(update)
        if self._state.buffer_size:
            self._statistics.begin(update.base[1], np.float32(weight * scale))
        for start, values in pieces:
            if start >= self._weights:
                self._statistics.accumulate(start - self._weights, values)
                continue
            np.multiply(values, scale, out=values)
            self._sums.put(start, values, weight)
        self._sums.end(weight)
        self.touched = False
        self._count += 1
        self._weight += float(weight)
        self._step += float(weight) * float(scale)
        self._staleness += float(weight) * update.staleness
        self._newest.append((update.norm, update.device))

    def close(self) -> VersionState:
        """The next version's state; the fold is used up.

        Raises:
            AggregatorError: the rule fails, or gives what is no float32[n] of finite values.
            CodecError: the result holds a value that is not finite.
            StorageError: what was held cannot be read.
        """
        aggregate = self._sums.finish()
        if self._weight > 0:
            step, staleness = self._step / self._weight, self._staleness / self._weight
            np.multiply(aggregate, damping(step, staleness, self._rules.damping), out=aggregate)
        slots = {name: self._slot(name) for name in self._optimizer.slots}
        with np.errstate(over="ignore", invalid="ignore"):
            weights, moved = self._optimizer.step(self._state.master[: self._weights], slots, aggregate)
        buffers = self._statistics.finalize()
        master = np.concatenate([weights, buffers]) if len(buffers) else weights
        if not all(np.isfinite(vector).all() for vector in (master, *moved.values())):
            raise CodecError("the fold of these updates is not finite")
        norms, witnesses = extended(
            self._state,
            [from_raw(norm) for norm, _ in self._newest],
            [witness_of(device) for _, device in self._newest],
            self._rules.clip,
        )
        return VersionState(
            epoch=self._state.epoch,
            number=self._state.number + 1,
            fingerprint=self._state.fingerprint,
            master=master,
            slots={**moved, **self._sums.slots()},
            norms=norms,
            witnesses=witnesses,
            buffer_size=self._state.buffer_size,
            past_buffers=self._state.remembered(),
        )

    def _slot(self, name: str) -> NDArray[np.float32]:
        """The optimizer's vector; zeros for one that has not made a version yet."""
        slot = self._state.slots.get(name)
        return np.zeros(self._weights, np.float32) if slot is None else slot


def damping(step: float, staleness: float, rule: DampingRule) -> np.float32:
    """What a whole aggregate is multiplied by, in (0, 1].

    ``step`` is the mean scale of its updates, ``staleness`` their mean staleness, both weighted.
    ``x[t+1] = x[t] - a x[t-m]`` is stable for ``a < 2 sin(pi / (4 m + 2))`` (Levin and May, A note on
    difference-delay equations, 1976), which is about ``pi / (2 m + 1)``; a client that trains to its
    optimum makes ``a`` equal to ``step``. One division and products: the same bits everywhere.
    """
    bound = rule.margin * math.pi / (2.0 * staleness + 1.0)
    return np.float32(bound / step) if rule.enabled and step > bound else np.float32(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedVersion:
    """What a close gives: the next ``state``, made from ``updates`` rows up to ``through_seq``."""

    state: VersionState
    through_seq: int
    updates: int


class OpenVersion:
    """The version that is being made: the fold, and the journal rows it stands for.

    An update that cannot be folded is quarantined with its reason, and the fold goes on without it. Where it
    is the aggregator that fails, no update is: this version stops with ``fault``, what is accepted waits in
    the journal, and all of it is folded anew at the next start.
    """

    fault: str = ""
    """Why no version can be made of this one by the rules as they are; names the aggregator."""

    def __init__(
        self,
        journal: Journal,
        rules: FoldRules,
        state: VersionState,
        *,
        through_seq: int,
        progress: Progress = unwatched,
    ) -> None:
        """Rebuild from the rows that wait; ``through_seq`` is that of the version ``state``."""
        self._journal = journal
        self._progress = progress
        self._rules = rules
        self._state = state
        self._first = self._through = through_seq
        self._fold = Fold(rules, state, journal, progress)
        self._rebuild()

    @property
    def count(self) -> int:
        """Updates folded so far."""
        return self._fold.count

    @property
    def through_seq(self) -> int:
        """``accept_seq`` of the last one."""
        return self._through

    @property
    def state(self) -> VersionState:
        """The version this one is made on."""
        return self._state

    def add(self, update: AcceptedUpdate, pieces: Iterable[Piece] | None = None) -> bool:
        """Fold an update whose acceptance is committed; False if it was quarantined.

        ``pieces`` are its decoded values, where whoever accepted it has kept them.

        Raises:
            ValueError: it does not come after the last one.
        """
        if update.accept_seq <= self._through:
            raise ValueError(f"update {update.accept_seq} after {self._through}: not in accept_seq order")
        reason = self._try(update, pieces)
        if reason is None:
            self._through = update.accept_seq
            return True
        self._journal.quarantine(update.accept_seq, reason)
        if self._fold.touched:
            self._rebuild()
        return False

    def close(self) -> ClosedVersion | None:
        """The next version; None if the aggregator fails (``fault``), or if the updates make no finite one:
        they are quarantined, all of them.

        Raises:
            StorageError: the disk refuses.
        """
        if self.fault:
            return None
        try:
            state = self._fold.close()
        except AggregatorError as error:
            self.fault = str(error)
            return None
        except (StorageError, MemoryError):
            raise
        except Exception as error:
            for update in self._journal.waiting():
                if update.accept_seq <= self._through:
                    self._journal.quarantine(update.accept_seq, _reason(error))
            self._rebuild()
            return None
        return ClosedVersion(state=state, through_seq=self._through, updates=self._fold.count)

    def _rebuild(self) -> None:
        """Fold all that waits, anew."""
        while not self._fold_waiting():
            pass

    def _fold_waiting(self) -> bool:
        """One pass over the rows that wait; False if it must begin again without a row that broke off."""
        self._fold = Fold(self._rules, self._state, self._journal, self._progress)
        self._through = self._first
        for update in self._journal.waiting():
            reason = self._try(update)
            if reason is None:
                self._through = update.accept_seq
                continue
            self._journal.quarantine(update.accept_seq, reason)
            if self._fold.touched:
                return False
        return True

    def _try(self, update: AcceptedUpdate, pieces: Iterable[Piece] | None = None) -> str | None:
        if self.fault:
            return None
        payload = self._journal.payload(update) if pieces is None else b""
        if payload is None:
            return "its payload is gone"
        try:
            if pieces is None:
                self._fold.add(update, payload)
            else:
                self._fold.add_decoded(update, pieces)
        except AggregatorError as error:
            self.fault = str(error)
        except (StorageError, MemoryError):
            raise
        except Exception as error:
            return _reason(error)
        self._progress()
        return None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:256]
