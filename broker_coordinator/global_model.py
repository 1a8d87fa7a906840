"""The global model: its newest version, the one that is being made, and the step from one to the next.

A version becomes real in one transaction, after its state file and its blob are durable. A crash before
that leaves two files that nobody names; a crash after it leaves a version that is published at the start.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from broker_coordinator.aggregation.fold import ClosedVersion, OpenVersion
from broker_coordinator.aggregation.rules import ClipRule, FoldRules, StalenessRule
from broker_coordinator.aggregation.version_state import VersionFiles, VersionState
from broker_coordinator.buffer import Buffer
from broker_coordinator.configuration import FleetConfiguration
from broker_coordinator.progress import Progress, unwatched
from broker_coordinator.publication.shelf import BlobShelf
from broker_coordinator.storage.records import AcceptedUpdate, VersionRecord
from broker_coordinator.storage.store import Store
from fl_io.disk import DISK, Disk
from fl_protocol.clock import Clock
from fl_protocol.codec import Piece, encode_model
from fl_protocol.errors import CodecError, LayoutError
from models.runtime import TrainingArtifact

__all__ = ["GlobalModel", "fold_rules"]

_log = logging.getLogger("lichen.coordinator")


def fold_rules(configuration: FleetConfiguration, artifact: TrainingArtifact) -> FoldRules:
    """The rules that a fleet's versions are made by."""
    staleness = configuration.staleness
    return FoldRules(
        layout=artifact.layout,
        codec=configuration.update.canonical_codec,
        max_examples=configuration.update.max_examples,
        aggregator=configuration.aggregator.kind,
        staleness=StalenessRule(
            kind=staleness.kind,
            exponent=staleness.exponent,
            grace=staleness.grace,
            slope=staleness.slope,
        ),
        optimizer=configuration.server.optimizer,
        server_lr=configuration.server_lr,
        clip=ClipRule(enabled=configuration.defence.clip),
        aggregator_options=configuration.aggregator.options,
        optimizer_options=configuration.server.options,
    )


class GlobalModel:
    """Opens the newest version of a store, or makes the first; the last is ``last_number`` (0: none).
    ``progress`` hears of each update that is folded.

    Raises:
        ConfigError: the rules name something that does not exist.
        LayoutError: the state belongs to a model of another layout.
        StorageError: a state file is missing or damaged; the disk refuses.
    """

    def __init__(
        self,
        configuration: FleetConfiguration,
        artifact: TrainingArtifact,
        *,
        store: Store,
        shelf: BlobShelf,
        clock: Clock,
        last_number: int = 0,
        disk: Disk = DISK,
        progress: Progress = unwatched,
    ) -> None:
        self._progress = progress
        self.rules = fold_rules(configuration, artifact)
        self.files = VersionFiles(Path(configuration.state), disk=disk)
        self.files.sweep()
        self._buffer = Buffer(
            size=configuration.buffer.size,
            flush_after_s=configuration.buffer.flush_after_s,
            min_updates=configuration.buffer.min_updates,
            by_round=configuration.buffer.kind == "rounds",
        )
        self._horizon_versions = configuration.horizon_versions
        self._last_number = last_number
        self._store = store
        self._shelf = shelf
        self._clock = clock
        self._uptime_counted_to = clock.monotonic()
        self._rules_name = store.put_rules(self.rules.to_json())
        self.version, self.state = self._newest(artifact)
        # Where it has become smaller, the manifest says so from now on, not from the next version on.
        self._raise_horizon(self.state.number)
        self._open = self._reopen()
        self._set_aside = self._those_set_aside()
        self._waiting_since = clock.monotonic()
        self.quarantined = 0
        self.weigh_fault = ""
        """Why the aggregator could not weigh the last update; empty where it could."""
        if self._open.fault:
            _log.error("%s", self._open.fault)

    @property
    def fault(self) -> str:
        """What is wrong with the aggregator, in whose version what is accepted waits; empty if nothing is."""
        return self._open.fault or self.weigh_fault

    @property
    def final(self) -> bool:
        """Whether no further version is wanted: updates are accepted still, and wait."""
        return 0 < self._last_number <= self.version.number

    @property
    def waiting(self) -> int:
        """Updates folded into the open version."""
        return self._open.count

    @property
    def room(self) -> int | None:
        """Updates that the open version takes before it closes; None for any number.

        No more are accepted in one commit: those behind would be weighed against a version that is about
        to be the last but one.
        """
        return None if self.final or self._open.fault else max(self._buffer.size - self._open.count, 0)

    def fold(self, update: AcceptedUpdate, pieces: Iterable[Piece] | None = None) -> None:
        """Add an update whose acceptance is committed; ``pieces`` as ``OpenVersion.add`` takes them."""
        if self._open.count == 0 and not self._set_aside and not self._buffer.by_round:
            self._waiting_since = self._clock.monotonic()
        well = not self._open.fault
        if not self._open.add(update, pieces):
            self.quarantined += 1
            self._set_aside.append(update.accept_seq)
        if well and self._open.fault:
            _log.error("%s", self._open.fault)

    def close_if_due(self) -> VersionRecord | None:
        """Make the next version if its time has come; it is committed when this returns."""
        if self.final or self._open.fault:
            return None
        waited = self._clock.monotonic() - self._waiting_since
        reason = self._buffer.closes(self._open.count, waited, len(self._set_aside))
        if reason is None:
            return None
        count = self._open.count
        if not count:
            return self._renew(reason)
        closed = self._open.close()
        if closed is None and self._open.fault:
            _log.error("%s", self._open.fault)
            return None
        if closed is None:
            self._note_set_aside(count)
            return None
        try:
            self._commit(closed, reason)
        except CodecError as error:
            self._quarantine_all(f"the version would not travel: {error}")
            return None
        return self.version

    def closes_in(self) -> float | None:
        """Seconds until a deadline may close the open version; None where there is none."""
        if self.final or self._open.fault:
            return None
        waited = self._clock.monotonic() - self._waiting_since
        return self._buffer.closes_in(self._open.count, waited, len(self._set_aside))

    @property
    def comes_again_s(self) -> float:
        """How long an update that could not be taken just now waits with its device."""
        return self._buffer.comes_again_s(self._clock.monotonic() - self._waiting_since)

    def _newest(self, artifact: TrainingArtifact) -> tuple[VersionRecord, VersionState]:
        epoch = self._store.office().epoch
        newest = self._store.newest_version()
        if newest is None:
            state = VersionState.initial(
                artifact.initial_weights(),
                fingerprint=artifact.layout.fingerprint,
                buffer_size=artifact.layout.buffer_size,
                slots=self.rules.make_optimizer().slots,
                epoch=epoch,
            )
            return self._write(state, closed_by="initial", through_seq=0, updates=0), state
        state = self.files.read(newest)
        if state.fingerprint != artifact.layout.fingerprint:
            raise LayoutError(
                f"the state folder holds versions of another model than {artifact.manifest.name!r}",
                hint="give a new model a new state folder, or name the artifact that this one began with",
            )
        if newest.epoch < epoch:
            state = state.reopened(epoch)
            return (
                self._write(state, closed_by="recover", through_seq=newest.through_seq, updates=0),
                state,
            )
        if self._shelf.read(newest.published_sha256) is None:
            self._shelf.put(encode_model(state.master, self.rules.layout))
        return newest, state

    def _renew(self, reason: str) -> VersionRecord:
        """The same weights as a new version, in which every device counts anew."""
        state = self.state.reopened(self.state.epoch)
        self._commit(ClosedVersion(state=state, through_seq=self._open.through_seq, updates=0), reason)
        return self.version

    def _commit(self, closed: ClosedVersion, reason: str) -> None:
        # What was set aside behind the last that was folded is of this version too, not of the next.
        through = max([closed.through_seq, *self._set_aside])
        self.version = self._write(
            closed.state, closed_by=reason, through_seq=through, updates=closed.updates
        )
        self.state = closed.state
        self._open = self._reopen()
        self._set_aside = self._those_set_aside()
        self._waiting_since = self._clock.monotonic()

    def _write(self, state: VersionState, *, closed_by: str, through_seq: int, updates: int) -> VersionRecord:
        """Files, then the transaction."""
        blob = self._shelf.put(encode_model(state.master, self.rules.layout))
        digest = self.files.write(state)
        record = VersionRecord(
            epoch=state.epoch,
            number=state.number,
            digest=digest,
            published_sha256=blob.sha256,
            rules=self._rules_name,
            through_seq=through_seq,
            updates=updates,
            closed_by=closed_by,
            term=self._store.office().term,
            closed_at=self._clock.wall(),
        )
        now = self._clock.monotonic()
        with self._store.transaction("coordinator.version"):
            self._store.add_uptime(now - self._uptime_counted_to)
            self._store.commit_version(record)
            self._raise_horizon(state.number)
        self._uptime_counted_to = now
        return self._store.version(state.number) or record

    def _raise_horizon(self, newest: int) -> None:
        oldest = self._store.version(newest - self._horizon_versions)
        if oldest is not None and self._store.office().horizon < (oldest.epoch, oldest.number):
            with self._store.transaction():
                self._store.raise_horizon((oldest.epoch, oldest.number))

    def _reopen(self) -> OpenVersion:
        return OpenVersion(
            self._store,
            self.rules,
            self.state,
            through_seq=self.version.through_seq,
            progress=self._progress,
        )

    def _quarantine_all(self, reason: str) -> None:
        """Quarantine everything that waits: it makes no version that a device could read."""
        count = 0
        with self._store.transaction("coordinator.set_aside"):
            for update in self._store.waiting():
                self._store.quarantine(update.accept_seq, reason)
                count += 1
        self._open = self._reopen()
        self._note_set_aside(count)

    def _note_set_aside(self, count: int) -> None:
        self.quarantined += count
        self._set_aside = self._those_set_aside()

    def _those_set_aside(self) -> list[int]:
        """``accept_seq`` of what came for the open version and was set aside."""
        return list(self._store.quarantined_after(self.version.through_seq))
