"""Cached update calibration: who seldom sends is stood for by what they sent last.

Wang, Cao, Wu, Chen, Chen: Tackling the Data Heterogeneity in Asynchronous Federated Learning with Cached
Update Calibration (2024). With h the newest update of each device seen, the step is
``mean(h) + mean over the version's updates of (d - h of its device)``. Where the paper has h = 0 for a device
that is not seen yet we have the mean of those seen: so a fleet that agrees takes the step it agrees on.

The cache is the journal: the newest folded payload of each device, ``age`` versions back at most, is kept
from pruning and decoded again. Only the sum of all h is a vector, kept in the version's state; where a
state has none (the first such version, the first of an epoch or of another ``age``) it is added up from
the journal. What is added to it is taken away again, for ever: in float32 the roundings would add up, so it
is float64, in two slots. Every update counts alike.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.appraisal import cached_codec
from broker_coordinator.aggregation.calibration_rule import CachedCalibration
from broker_coordinator.aggregation.scalars import from_raw
from broker_coordinator.aggregation.version_state import CACHE_SLOT, VersionState
from broker_coordinator.progress import Progress, unwatched
from broker_coordinator.storage.records import AcceptedUpdate
from broker_coordinator.storage.store import Journal
from fl_protocol.codec import Piece, codec_seed
from fl_protocol.errors import StorageError
from fl_protocol.layout import TensorLayout
from fl_protocol.update import UpdateHeader

__all__ = ["CalibratedSums"]

Floats = NDArray[np.float32]
Sum = NDArray[np.float32] | NDArray[np.float64]


class CalibratedSums:
    """The updates of the version after ``state`` on their way through ``ca2fl``."""

    def __init__(
        self,
        rule: CachedCalibration,
        journal: Journal,
        state: VersionState,
        layout: TensorLayout,
        progress: Progress = unwatched,
    ) -> None:
        self._journal = journal
        self._progress = progress
        self._layout = layout
        self._slot = f"{CACHE_SLOT}{rule.age}"
        self._wide = rule.sum_bits == 64
        self._number = state.number
        self._after = max(0, state.number - rule.age)
        self._size = layout.weight_size
        self._change = self._nothing()
        self._latest: dict[str, AcceptedUpdate] = {}
        self._count = self._known = 0
        self._sum = self._begun(state)
        self._seen = journal.devices_folded(self._after, self._number)
        self._step = np.zeros(self._size, np.float32)

    def begin(self, update: AcceptedUpdate) -> None:
        """The update whose pieces come next."""
        self._update = update

    def put(self, start: int, values: Floats, weight: np.float32) -> None:
        """One piece of it."""
        for total in (self._step, self._change):
            part = total[start : start + len(values)]
            np.add(part, values, out=part)

    def end(self, weight: np.float32) -> None:
        """Take away what was cached of its device; one that comes twice in a version replaces itself."""
        device = self._update.device
        old = self._journal.last_folded(device, self._after, self._number)
        if old is not None:
            self._add(self._step, old, np.float32(-1))
            self._known += 1
        before = self._latest.get(device, old)
        if before is not None:
            self._add(self._change, before, np.float32(-1))
        self._latest[device] = replace(self._update, payload=None)
        self._count += 1

    def finish(self) -> Floats:
        """The calibrated step, float32[size]."""
        if self._count:
            np.divide(self._step, np.float32(self._count), out=self._step)
        if self._seen:
            mean = np.divide(self._sum, np.float32(self._seen)).astype(np.float32, copy=False)
            if self._count:
                np.multiply(mean, np.float32(self._known / self._count), out=mean)
            np.add(self._step, mean, out=self._step)
        return self._step

    def slots(self) -> dict[str, Floats]:
        """What the next version's state keeps."""
        total = np.add(self._sum, self._change)
        if not self._wide:
            return {self._slot: total}
        high = total.astype(np.float32)
        return {f"{self._slot}:high": high, f"{self._slot}:low": np.subtract(total, high).astype(np.float32)}

    def _nothing(self) -> Sum:
        return np.zeros(self._size, np.float64) if self._wide else np.zeros(self._size, np.float32)

    def _kept(self, state: VersionState) -> Sum | None:
        """What ``slots`` gave to a state, if it did."""
        if not self._wide:
            known = state.slots.get(self._slot)
            return known.copy() if known is not None else None
        high, low = (state.slots.get(f"{self._slot}:{part}") for part in ("high", "low"))
        return np.add(high, low, dtype=np.float64) if high is not None and low is not None else None

    def _begun(self, state: VersionState) -> Sum:
        """The sum over the devices that are cached for ``state``; those just too old are taken away."""
        total = self._kept(state)
        if total is not None:
            if self._after:
                for row in self._journal.last_words(self._after, self._number):
                    self._add(total, row, np.float32(-1))
            return total
        total = self._nothing()
        for version in range(self._after + 1, self._number + 1):
            for row in self._journal.last_words(version, self._number):
                self._add(total, row, np.float32(1))
        return total

    def _add(self, total: Sum, row: AcceptedUpdate, factor: np.float32) -> None:
        scale = np.float32(from_raw(row.scale) * factor)
        for start, values in self._pieces(row):
            if start < self._size:
                np.multiply(values, scale, out=values)
                part = total[start : start + len(values)]
                np.add(part, values, out=part)
        self._progress()

    def _pieces(self, row: AcceptedUpdate) -> Iterator[Piece]:
        payload = self._journal.payload(row)
        if payload is None:
            raise StorageError(
                f"the payload of update {row.accept_seq}, that ca2fl calls upon, is gone",
                hint="restore a backup, or go on with [aggregator] kind = 'mean'",
            )
        header, _ = UpdateHeader.unpack(row.header)
        if hashlib.sha256(payload).digest() != header.sha256:
            raise StorageError(
                f"the payload of update {row.accept_seq}, that ca2fl calls upon, was changed by the disk",
                hint="restore a backup, or go on with [aggregator] kind = 'mean'",
            )
        codec = cached_codec(header.codec)
        return codec.pieces(payload, self._layout, codec_seed(row.update_id))
