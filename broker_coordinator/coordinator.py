"""The coordinator: one thread that takes messages in, commits, folds, closes versions and publishes them.

Everything that happens comes in through ``receive``; everything that is due is done by ``work``. Transport
and clock are arguments: a simulator calls both itself, ``run`` is the loop for a real one.
"""

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.assessment import Assessment, Evaluate
from broker_coordinator.books.retention import RetentionPolicy, prune
from broker_coordinator.configuration import FleetConfiguration
from broker_coordinator.enrolment import Enrolment
from broker_coordinator.evaluation import Evaluation, caveat_of
from broker_coordinator.global_model import GlobalModel
from broker_coordinator.inbox import Inbox
from broker_coordinator.ingest import Ingest
from broker_coordinator.inquiry import Inquiry
from broker_coordinator.intake import Intake
from broker_coordinator.keys import Signing
from broker_coordinator.leasing import Commands, Leasing
from broker_coordinator.metrics import Figures
from broker_coordinator.outgoing import Outgoing
from broker_coordinator.progress import Progress, unwatched
from broker_coordinator.publication.edition import Editor
from broker_coordinator.publication.publisher import Publisher
from broker_coordinator.publication.shelf import BlobShelf
from broker_coordinator.reception import Reception
from broker_coordinator.storage.records import VersionRecord
from broker_coordinator.storage.sqlite_store import SqliteStore
from broker_coordinator.storage.uploads import PayloadFiles
from fl_io.disk import DISK, Disk, sweep_unfinished
from fl_protocol.blob import address_of
from fl_protocol.clock import Clock
from fl_protocol.presence import SESSION_BYTES, CoordinatorPresence
from fl_protocol.topics import FleetTopics
from fl_protocol.transport import Connected, Delivered, Disconnected, Received, Transport, TransportEvent
from models.runtime import TrainingArtifact

__all__ = ["Coordinator"]

LONGEST_IDLE_S = 1.0
PRUNE_EVERY_S = 10.0
_log = logging.getLogger("lichen.coordinator")
QUIET_S = 1.0
LAST_WORD_S = 10.0
"""A run that is to end takes the updates under way: until none has come for a second, at most ten."""
INBOX_WINDOWS = 4
"""The inbox holds this many ingest windows of payload."""


class Coordinator:
    """One task of one fleet. Whoever makes it holds the state folder's lock; it begins a new term.
    ``progress`` hears of the pieces of work that may be long: here, and within a turn.

    Raises:
        ArtifactError: the artifact is damaged.
        ConfigError: the configuration names something that does not exist.
        LayoutError: the state folder belongs to another model.
        StorageError: the state is damaged, or the disk refuses.
    """

    def __init__(
        self,
        configuration: FleetConfiguration,
        *,
        artifact: TrainingArtifact,
        store: SqliteStore,
        transport: Transport,
        clock: Clock,
        signing: Signing,
        evaluate: Evaluate | None = None,
        disk: Disk = DISK,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        broker_name: str = "",
        insecure: bool = False,
        progress: Progress = unwatched,
    ) -> None:
        self._progress = progress
        state = Path(configuration.state)
        self._configuration = configuration
        self._store = store
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._broker_name = broker_name
        self._insecure = insecure
        self._topics = FleetTopics(configuration.fleet)
        self._office = store.take_office()
        self._session = entropy(SESSION_BYTES)
        sweep_unfinished(state, disk=disk)
        self._shelf = BlobShelf(state / "blobs", disk=disk)
        files = PayloadFiles(state, disk=disk)
        files.make_folders()
        self._model = GlobalModel(
            configuration,
            artifact,
            store=store,
            shelf=self._shelf,
            clock=clock,
            last_number=configuration.stop_after_versions,
            disk=disk,
            progress=progress,
        )
        self._outgoing = Outgoing(transport)
        self._inbox = Inbox(INBOX_WINDOWS * configuration.ingest.window_bytes, transport.acknowledge)
        commands = Commands(self._topics, store, signing.sign)
        self._enrolment = Enrolment(configuration.fleet, configuration.identity.registry)
        self._build_publishing(artifact, signing, disk, commands)
        self._build_intake(files, commands)
        self._assessment = Assessment(
            evaluate, store=store, shelf=self._shelf, layout=artifact.layout, caveat=caveat_of(artifact)
        )
        self._journal = store.counts()
        self._folded = self._journal.folded + self._office.forgotten
        self._policy = RetentionPolicy(
            versions=configuration.retention.versions,
            bytes=configuration.retention.bytes,
            days=configuration.retention.days,
        )
        self._files = files
        self._next_prune = 0.0
        self._unpruned = True
        self._committed_at = self._accepted_at = clock.monotonic()
        self._state = "connecting"
        self._connections = 0
        self._date_error = ""
        self.http_url = ""
        if self._office.rolled_back:
            self._publisher.halt()
        self._announce(self._model.version)
        known = len(store.devices())
        if 0 < known < configuration.buffer.size:
            _log.warning(
                "a version takes %d updates and %d devices are known: until more come,"
                " only its deadline closes it",
                configuration.buffer.size,
                known,
            )
        if self._enrolment.enrolled is not None:
            self._reception.expel()

    def start(self) -> None:
        """Connect; returns at once."""
        self._transport.start(self.receive)

    def receive(self, event: TransportEvent) -> None:
        """Take an event in, from the one thread of the transport; returns at once."""
        self._inbox.put(event)

    def wait(self, timeout_s: float) -> None:
        """Return when an event is there, at the latest after ``timeout_s``."""
        self._inbox.wait(timeout_s)

    def wake(self) -> None:
        """End a ``wait`` at once; safe in a signal handler's thread."""
        self._inbox.wake()

    def work(self) -> float:
        """Do all that is due; seconds until there may be more (0: call again at once).

        Raises:
            StorageError: the disk refuses: nothing that was not committed has been acknowledged.
            TransportError: another coordinator has taken office.
        """
        if self._enrolment.refresh():
            self._reception.expel()
        self._attend()
        self._ingest_pending()
        self._close_versions()
        self._outgoing.flush()
        waits = [self._publisher.work(), self._model.closes_in()]
        edition = self._publisher.edition
        by_lease = edition is not None and edition.manifest.pacing.by_lease
        if by_lease and self._publisher.settled and not self._publisher.halted:
            waits.append(self._leasing.work(self._model.version.id, self._model.waiting))
        self._outgoing.flush()
        self._prune_if_due()
        busy = len(self._inbox) > 0
        if self._assessment.urgent or (len(self._assessment) and not busy):
            self._assessment.evaluate_next()
            return 0.0
        if busy:
            return 0.0
        return min([LONGEST_IDLE_S, *(wait for wait in waits if wait is not None)])

    def run(self, stopped: Callable[[], bool], after_work: Callable[[], None] = lambda: None) -> None:
        """Work until ``stopped`` or ``finished``; ``after_work`` is called after each turn.

        Raises:
            What ``work`` raises; the connection is closed in any case.
        """
        self.start()
        try:
            while not stopped() and not self.finished:
                pause = self.work()
                after_work()
                if pause > 0 and not self.finished:
                    self.wait(pause)
        finally:
            self._transport.stop()
        after_work()

    @property
    def finished(self) -> bool:
        """Whether the last version that was asked for is made, evaluated, and out, and its devices quiet."""
        now = self._clock.monotonic()
        quiet = now >= min(self._accepted_at + QUIET_S, self._committed_at + LAST_WORD_S)
        return (
            self._model.final
            and quiet
            and self._publisher.settled
            and not len(self._assessment)
            and not len(self._intake)
            and not len(self._outgoing)
        )

    @property
    def version(self) -> VersionRecord:
        """The newest committed version."""
        return self._model.version

    @property
    def evaluated(self) -> tuple[int, Evaluation] | None:
        """The number of the newest version that was measured, and what it gave."""
        return self._assessment.newest

    @property
    def aggregator_fault(self) -> str:
        """Why the aggregation rule fails, in a sentence that names it; empty where it does not."""
        return self._model.fault

    @property
    def verdicts(self) -> tuple[int, Mapping[str, int], int]:
        """Since this coordinator was made: updates accepted, refused by reason, and trainings that failed."""
        ingest = self._ingest
        return ingest.accepted, ingest.refused, ingest.device_events["error"]

    @property
    def weights(self) -> NDArray[np.float32]:
        """Its master weights, float32[n]; not to be written to."""
        return self._model.state.master

    def figures(self) -> Figures:
        """How things stand."""
        traffic = self._transport.traffic()
        edition = self._publisher.edition
        evaluated = self._assessment.newest
        evaluation = evaluated[1] if evaluated else None
        measured = evaluation is not None and evaluation.source == "coordinator"
        return Figures(
            fleet=self._configuration.fleet,
            task=self._configuration.task,
            epoch=self._office.epoch,
            term=self._office.term,
            version=self._model.version.number,
            published=edition.version.number if edition is not None else None,
            state=self._state,
            accuracy=evaluation.accuracy if evaluation else None,
            accuracy_version=evaluated[0] if evaluated else None,
            accuracy_source=evaluation.source if evaluation else "",
            accuracy_examples=evaluation.examples if evaluation else 0,
            accuracy_devices=evaluation.devices if evaluation else 0,
            accuracy_caveat=self._assessment.caveat if measured else "",
            metrics=evaluation.means if evaluation else {},
            reported=self._assessment.reports if measured else {},
            devices_online=len(self._reception.online),
            updates_accepted=self._journal.accepted + self._office.forgotten + self._ingest.accepted,
            updates_folded=self._folded,
            waiting=self._model.waiting,
            quarantined=self._journal.quarantined + self._model.quarantined,
            aggregator_fault=self.aggregator_fault,
            unweighed_share=self._ingest.unweighed_share,
            runtimes=self._store.runtimes(),
            refused=dict(self._ingest.refused),
            rejected=dict(self._ingest.rejected),
            device_events=dict(self._ingest.device_events),
            leases=len(self._store.leases()),
            credit_bytes=self._ingest.credit.granted,
            inbox=len(self._inbox),
            inbox_highest=self._inbox.highest,
            inbox_dropped=self._inbox.dropped,
            outgoing=len(self._outgoing),
            outgoing_dropped=self._outgoing.dropped,
            connections=self._connections,
            tls_date_error=self._date_error,
            insecure=self._insecure,
            devices_enrolled=self._enrolment.enrolled,
            registry_fault=self._enrolment.fault,
            certificates_expiring=self._enrolment.expiring(self._clock.wall()),
            doubled={double.device: double.count for double in self._store.doubles()},
            bytes_sent=traffic.sent,
            bytes_received=traffic.received,
            broker=self._broker_name,
            http=self.http_url,
            pid=os.getpid(),
        )

    # Parts

    def _build_publishing(
        self, artifact: TrainingArtifact, signing: Signing, disk: Disk, commands: Commands
    ) -> None:
        configuration, store = self._configuration, self._store
        self._editor = Editor(
            configuration,
            artifact,
            store=store,
            shelf=self._shelf,
            sign=signing.sign,
            verify=signing.verify,
            disk=disk,
        )
        self._publisher = Publisher(
            settings=configuration.publish,
            topics=self._topics,
            task=configuration.task,
            editor=self._editor,
            store=store,
            shelf=self._shelf,
            transport=self._transport,
            clock=self._clock,
            presence=self._presence,
        )
        self._leasing = Leasing(
            configuration.choice,
            store=store,
            commands=commands,
            send=self._outgoing.send,
            clock=self._clock,
            lease_s=configuration.selection.lease_s,
            entropy=self._entropy,
        )

    def _build_intake(self, files: PayloadFiles, commands: Commands) -> None:
        store = self._store
        self._ingest = Ingest(
            topics=self._topics,
            store=store,
            files=files,
            model=self._model,
            clock=self._clock,
            window_bytes=self._configuration.ingest.window_bytes,
            ask_evidence=Inquiry(commands, self._clock).ask,
            admits=self._enrolment.admits,
        )
        self._reception = Reception(
            topics=self._topics,
            store=store,
            shelf=self._shelf,
            ingest=self._ingest,
            editor=self._editor,
            publisher=self._publisher,
            leasing=self._leasing,
            outgoing=self._outgoing,
            presence=lambda challenge: self._presence(b"", challenge),
            admits=self._enrolment.admits,
        )
        self._intake = Intake(
            store=store,
            transport=self._transport,
            outgoing=self._outgoing,
            ingest=self._ingest,
            reception=self._reception,
            model=self._model,
        )

    def _presence(self, marker: bytes, challenge: bytes = b"") -> CoordinatorPresence:
        office = self._office
        return CoordinatorPresence(
            session=self._session,
            epoch=office.epoch,
            term=office.term,
            marker=marker,
            challenge=challenge,
            rolled_back=self._publisher.halted,
        )

    # One turn

    def _attend(self) -> None:
        """What happened on the connection, in order; messages wait for their commit."""
        for event in self._inbox.take(self._configuration.ingest.batch):
            if isinstance(event, Received):
                self._intake.add(event)
            elif isinstance(event, Delivered):
                self._publisher.delivered(event.token)
            elif isinstance(event, Connected):
                self._connected(event)
            elif isinstance(event, Disconnected):
                if self._state != "connecting" or event.permanent:
                    _log.warning("broker: %s", event.reason)
                self._state = "connecting"
                self._publisher.disconnected()

    def _connected(self, event: Connected) -> None:
        self._state = "rolled_back" if self._publisher.halted else "running"
        self._connections += 1
        _log.info("connected to the broker")
        self._date_error = event.date_error
        if event.date_error:
            _log.warning("its certificate is taken in spite of its dates (%s)", event.date_error)
        if not event.session_present and self._connections > 1:
            # What devices said meanwhile is lost: a new session asks them to say it again.
            self._session = self._entropy(SESSION_BYTES)
        self._transport.subscribe(self._topics.coordinator_filters())
        self._publisher.connected()

    def _ingest_pending(self) -> None:
        """Commit by commit; a version closes between two of them, never inside one."""
        while len(self._intake):
            batch = self._intake.commit()
            self._unpruned = True
            self._progress()
            for update in batch.accepted:
                self._model.fold(update, batch.decoded.get(update.accept_seq))
            if batch.rolled_back:
                self._state = "rolled_back"
                self._publisher.halt()
                _log.error("devices know a newer manifest than this store: `lichen coordinator recover`")
            if batch.accepted:
                self._accepted_at = self._clock.monotonic()
                self._leasing.dirty = True
                self._close_versions()
        self._reception.confirm_office()

    def _close_versions(self) -> None:
        version = self._model.close_if_due()
        if version is not None:
            self._folded += version.updates
            self._committed_at = self._clock.monotonic()
            _log.info("version %d from %d updates (%s)", version.number, version.updates, version.closed_by)
            self._announce(version)
            self._progress()
            self._tidy()

    def _tidy(self) -> None:
        """Let go of what no version needs any more."""
        self._ingest.drop_uploads_below(self._store.office().horizon)
        wanted = self._assessment.needed() | {self._model.version.published_sha256}
        self._shelf.drop_all_but(self._publisher.needed() | {address_of(sha256) for sha256 in wanted})

    def _prune_if_due(self) -> None:
        """Also where no version closes: refusals are remembered too."""
        now = self._clock.monotonic()
        if self._unpruned and now >= self._next_prune:
            self._next_prune = now + PRUNE_EVERY_S
            self._unpruned = False
            spare = self._model.rules.cached_versions
            prune(self._store, self._files, self._model.files, self._policy, spare=spare)

    def _announce(self, version: VersionRecord) -> None:
        self._publisher.offer(version)
        self._leasing.dirty = True
        self._assessment.add(version)
