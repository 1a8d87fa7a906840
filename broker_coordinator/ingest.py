"""Ingest: messages in, one commit, acknowledgements and receipts out. In this order, always.

A message that is acknowledged before its commit is lost by a crash in between; a receipt before the
commit makes a device forget an update that nobody has.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from broker_coordinator.aggregation.appraisal import Appraisal, Unweighed, appraise_all
from broker_coordinator.aggregation.weighing import Weighing
from broker_coordinator.credit import CreditWindow
from broker_coordinator.decide import (
    Accept,
    Action,
    Answer,
    AskEvidence,
    BeginArrived,
    ChunkArrived,
    Count,
    Event,
    Finish,
    Invite,
    MalformedBegin,
    OpenUpload,
    PutRange,
    Refuse,
    RollBack,
    TaskState,
    decide,
)
from broker_coordinator.global_model import GlobalModel
from broker_coordinator.outgoing import Outgoing
from broker_coordinator.storage.records import AcceptedUpdate, NewUpdate, Upload
from broker_coordinator.storage.store import Store
from broker_coordinator.storage.uploads import ROW_BYTES, PayloadFiles
from fl_io.crash import crash_point
from fl_protocol.clock import Clock
from fl_protocol.codec import Piece, codec_for
from fl_protocol.errors import MessageError
from fl_protocol.receipt import Receipt
from fl_protocol.topics import BeginTopic, ChunkTopic, FleetTopics
from fl_protocol.transport import Transport
from fl_protocol.update import UpdateHeader, update_hash
from fl_protocol.version import VersionId

__all__ = ["Batch", "Ingest", "commit_then_answer"]

BUSY_WAIT_S = 2.0


@dataclass(slots=True)
class Batch:
    """What one commit leads to, once it is made.

    ``candidates`` are updates found acceptable and not appraised yet, ``bases`` their devices and bases.
    ``decoded`` holds by ``accept_seq`` the pieces of updates that were decoded to be appraised, ``packed``
    by id the headers as the journal keeps them, ``known_bases`` whether versions are known: none becomes so
    within a commit.
    """

    tokens: list[int] = field(default_factory=list)
    answers: list[tuple[str, bytes]] = field(default_factory=list)
    candidates: dict[bytes, Accept] = field(default_factory=dict)
    bases: set[tuple[str, VersionId]] = field(default_factory=set)
    accepted: list[AcceptedUpdate] = field(default_factory=list)
    decoded: dict[int, Sequence[Piece]] = field(default_factory=dict)
    packed: dict[bytes, bytes] = field(default_factory=dict)
    known_bases: dict[VersionId, bool] = field(default_factory=dict)
    uploads: dict[bytes, Upload] = field(default_factory=dict)
    written: list[tuple[bytes, int, int]] = field(default_factory=list)
    finished: list[tuple[str, bytes]] = field(default_factory=list)
    discarded: list[bytes] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    rolled_back: bool = False

    @property
    def taken(self) -> int:
        """Updates that are in, or about to be."""
        return len(self.accepted) + len(self.candidates)


def commit_then_answer(
    store: Store, transport: Transport, outgoing: Outgoing, work: Callable[[Batch], None]
) -> Batch:
    """Do ``work`` in one transaction; acknowledge and answer only once it is committed.

    Raises:
        StorageError: nothing was committed, acknowledged or answered.
    """
    batch = Batch()
    with store.transaction("coordinator.ingest"):
        work(batch)
    for token in batch.tokens:
        transport.acknowledge(token)
    crash_point("coordinator.acknowledged")
    for topic, payload in batch.answers:
        outgoing.send(topic, payload)
    crash_point("coordinator.answered")
    return batch


class Ingest:
    """Updates of one task: looks up rows, lets ``decide`` say what to do, and does it."""

    def __init__(
        self,
        *,
        topics: FleetTopics,
        store: Store,
        files: PayloadFiles,
        model: GlobalModel,
        clock: Clock,
        window_bytes: int,
        ask_evidence: Callable[[Batch, str], None],
        admits: Callable[[str], bool],
    ) -> None:
        self._topics = topics
        self._store = store
        self._files = files
        self._model = model
        self._clock = clock
        self._ask_evidence = ask_evidence
        self._admits = admits
        codec = codec_for(model.rules.codec)
        self._payload_size, self._payload_exact = codec.largest(model.rules.layout), codec.exact
        self._uploading: dict[bytes, str] = {}
        self._open_uploads: Counter[str] = Counter()
        self._weighing = Weighing()
        self.recall()
        self.credit = CreditWindow(window_bytes)
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.device_events: Counter[str] = Counter()

    @property
    def unweighed_share(self) -> float:
        """See ``Weighing.share``."""
        return self._weighing.share

    def state(self) -> TaskState:
        """What decisions depend on, as of now."""
        office = self._store.office()
        return TaskState(
            epoch=office.epoch,
            term=office.term,
            counter=office.counter,
            horizon=office.horizon,
            witnessed=office.witnessed,
            version=self._model.version.id,
            codec=self._model.rules.codec,
            fingerprint=self._model.rules.layout.fingerprint,
            payload_size=self._payload_size,
            payload_exact=self._payload_exact,
        )

    def receive(self, batch: Batch, state: TaskState, topic: BeginTopic | ChunkTopic, payload: bytes) -> None:
        """Take one message of an update."""
        if topic.update_id in batch.candidates:
            self._take_in(batch, state)
        if isinstance(topic, BeginTopic):
            event = self._begun(batch, state, topic, payload)
        else:
            event = self._chunk(batch, topic, payload)
        self.carry_out(batch, state, event)

    def finish(self, batch: Batch, state: TaskState) -> None:
        """Make the bytes of this batch durable, record them, and take in all updates that are whole."""
        if batch.written:
            self._files.sync(sorted({update_id for update_id, _, _ in batch.written}))
            for update_id, start, end in batch.written:
                if self._store.upload(update_id) is not None:
                    self._store.put_range(update_id, start, end)
            batch.written.clear()
        while batch.finished:
            self._complete(batch, state, *batch.finished.pop(0))
        self._take_in(batch, state)

    def settle(self, batch: Batch) -> None:
        """After the commit: it counts, and files that no row names any more go."""
        self.accepted += len(batch.accepted)
        self.refused.update(batch.refused)
        self._files.discard(batch.discarded)

    def recall(self) -> None:
        """At the start, and after a commit that did not come about: know of the uploads that the store
        knows of, and have the files that it says are there."""
        uploads = self._store.uploads()
        for upload in uploads:
            end = max((end for _, end in upload.ranges), default=0)
            there = self._files.has_part(upload.update_id, end) or self._files.reopen(upload.update_id, end)
            if end and not there:
                self._store.reset_upload(upload.update_id)
        self._files.sweep(
            parts=[upload.update_id for upload in uploads], payloads=self._store.payload_files()
        )
        self._uploading = {upload.update_id: upload.device for upload in uploads}
        self._open_uploads = Counter(self._uploading.values())

    def drop_uploads_below(self, horizon: tuple[int, int]) -> None:
        """Forget uploads whose update would be stale by now."""
        stale = []
        for upload in self._store.uploads():
            base = UpdateHeader.unpack(upload.header)[0].base
            if (base.epoch, base.number) < horizon:
                stale.append(upload)
        with self._store.transaction("coordinator.stale_uploads"):
            for upload in stale:
                self._store.close_upload(upload.update_id)
        for upload in stale:
            self._ended(upload.update_id)
        self._files.discard(upload.update_id for upload in stale)

    def carry_out(self, batch: Batch, state: TaskState, event: Event) -> None:
        """Do what ``decide`` says."""
        for action in decide(state, event):
            self._do(action, batch, state)

    # What the store knows of a message

    def _begun(self, batch: Batch, state: TaskState, topic: BeginTopic, payload: bytes) -> Event:
        try:
            header, content = UpdateHeader.unpack(payload)
        except MessageError:
            known = self._store.outcome(topic.update_id)
            return MalformedBegin(device=topic.device, update_id=topic.update_id, known=known)
        return self._event(batch, state, topic, header, content)

    def _event(
        self,
        batch: Batch,
        state: TaskState,
        topic: BeginTopic,
        header: UpdateHeader,
        content: bytes | None,
    ) -> BeginArrived:
        device, update_id = topic.device, topic.update_id
        if (device, header.base) in batch.bases:
            # Only the journal says whether its sibling counts.
            self._take_in(batch, state)
        base_known = batch.known_bases.get(header.base)
        if base_known is None:
            base_known = batch.known_bases[header.base] = self._store.base_known(header.base)
        packed = batch.packed[update_id] = header.pack()
        return BeginArrived(
            device=device,
            update_id=update_id,
            header=header,
            hash=update_hash(update_id, packed),
            payload=content,
            known=self._store.outcome(update_id),
            counted=self._store.counted(device, header.base),
            base_known=base_known,
            upload=self._upload(batch, update_id),
            uploads_open=self._open_uploads[device],
            admitted=self._admits(device),
        )

    def _chunk(self, batch: Batch, topic: ChunkTopic, payload: bytes) -> Event:
        upload = self._upload(batch, topic.update_id)
        return ChunkArrived(
            device=topic.device,
            update_id=topic.update_id,
            start=topic.offset,
            content=payload,
            known=self._store.outcome(topic.update_id),
            upload=upload,
            size=UpdateHeader.unpack(upload.header)[0].size if upload is not None else 0,
            admitted=self._admits(topic.device),
        )

    def _upload(self, batch: Batch, update_id: bytes) -> Upload | None:
        """The upload, with the bytes of this very batch."""
        if update_id not in self._uploading:
            return None
        return batch.uploads.get(update_id) or self._store.upload(update_id)

    # Actions

    def _do(self, action: Action, batch: Batch, state: TaskState) -> None:
        match action:
            case Accept():
                self._accept(action, batch, state)
            case Answer():
                self._say(batch, action.device, action.update_id, action.receipt)
            case PutRange():
                self._put(action, batch, state)
            case Finish():
                if (action.device, action.update_id) not in batch.finished:
                    batch.finished.append((action.device, action.update_id))
            case Invite():
                self._invite(action, batch, state)
            case OpenUpload():
                self._open(action, batch)
            case Refuse():
                self._refuse(action, batch, state)
            case Count():
                self.rejected[action.reason] += 1
            case AskEvidence():
                self._ask_evidence(batch, action.device)
            case RollBack():
                self._store.roll_back(action.epoch)
                batch.rolled_back = True

    def _invite(self, action: Invite, batch: Batch, state: TaskState) -> None:
        wanted = action.missing.bytes
        amount = self.credit.grant(action.update_id, wanted, self._clock.monotonic())
        inline = action.update_id not in self._uploading
        if amount == 0 or (inline and amount < wanted):
            self.credit.release(action.update_id)
            busy = Receipt(
                state="later", epoch=state.epoch, term=state.term, reason="busy", wait_s=BUSY_WAIT_S
            )
            self._say(batch, action.device, action.update_id, busy)
            return
        receipt = Receipt(
            state="open", epoch=state.epoch, term=state.term, missing=action.missing, credit=amount
        )
        self._say(batch, action.device, action.update_id, receipt)

    def _open(self, action: OpenUpload, batch: Batch) -> None:
        self._uploading[action.upload.update_id] = action.upload.device
        self._open_uploads[action.upload.device] += 1
        self._store.open_upload(action.upload)
        batch.uploads[action.upload.update_id] = action.upload

    def _put(self, action: PutRange, batch: Batch, state: TaskState) -> None:
        update_id, end = action.update_id, action.start + len(action.content)
        upload = self._upload(batch, update_id)
        if upload is None:
            return
        self._files.put(update_id, action.start, action.content)
        batch.written.append((update_id, action.start, end))
        upload = replace(upload, ranges=upload.ranges.add(action.start, end))
        batch.uploads[update_id] = upload
        spent = self.credit.spend(update_id, len(action.content), self._clock.monotonic())
        missing = upload.ranges.missing(UpdateHeader.unpack(upload.header)[0].size)
        if spent and missing:
            self._invite(Invite(device=upload.device, update_id=update_id, missing=missing), batch, state)

    def _refuse(self, action: Refuse, batch: Batch, state: TaskState) -> None:
        base = action.header.base
        self._store.refuse(
            action.update_id, hash=action.hash, device=action.device, base=base, reason=action.reason
        )
        self._store.count_update(action.device, accepted=False, bytes_up=0)
        batch.refused[action.reason] += 1
        if self._closed(batch, action.update_id):
            batch.discarded.append(action.update_id)
        receipt = Receipt(state="refused", epoch=state.epoch, term=state.term, reason=action.reason)
        self._say(batch, action.device, action.update_id, receipt)

    def _accept(self, action: Accept, batch: Batch, state: TaskState) -> None:
        """Together with others, before the commit; a large one at once, so that none but it is in memory."""
        batch.candidates[action.update_id] = action
        batch.bases.add((action.device, action.header.base))
        if len(action.payload) > ROW_BYTES:
            self._take_in(batch, state)

    def _take_in(self, batch: Batch, state: TaskState) -> None:
        """Appraise what was found acceptable, and append it to the journal in the order in which it came."""
        candidates = list(batch.candidates.values())
        batch.candidates.clear()
        batch.bases.clear()
        if not candidates:
            return
        verdicts = appraise_all(
            candidates,
            state=self._model.state,
            rules=self._model.rules,
            reported=self._weighing.reported,
        )
        good: list[tuple[Accept, Appraisal]] = []
        for action, verdict in zip(candidates, verdicts, strict=True):
            if isinstance(verdict, Appraisal):
                good.append((action, verdict))
                continue
            if isinstance(verdict, Unweighed):
                self._leave(batch, state, action, verdict)
                continue
            refusal = Refuse(
                device=action.device,
                update_id=action.update_id,
                header=action.header,
                hash=action.hash,
                reason=verdict.reason,
            )
            self._refuse(refusal, batch, state)
        updates = [
            _new_update(action, batch.packed[action.update_id], appraisal) for action, appraisal in good
        ]
        receipt = Receipt(state="done", epoch=state.epoch, term=state.term).pack()
        for (action, appraisal), update, accept_seq in zip(
            good, updates, self._store.accept_all(updates), strict=True
        ):
            if action.header.lease is not None:
                self._store.end_lease(action.header.lease)
            if self._closed(batch, action.update_id) and update.payload is not None:
                batch.discarded.append(action.update_id)
            batch.accepted.append(AcceptedUpdate.of(update, accept_seq))
            if appraisal.pieces is not None:
                batch.decoded[accept_seq] = appraisal.pieces
            batch.answers.append((self._topics.receipt(action.device, action.update_id), receipt))
        self._store.count_accepted(updates)
        self._weighing.took((action.device, appraisal.asked) for action, appraisal in good)
        self._model.weigh_fault = self._weighing.fault

    def _leave(self, batch: Batch, state: TaskState, action: Accept, verdict: Unweighed) -> None:
        """Nothing is recorded: the device keeps its update, and asks again after a while.

        What it uploaded goes: it would hold a place that the device's other updates need.
        """
        self._weighing.failed(action.device, verdict.error)
        if self._closed(batch, action.update_id):
            self._store.close_upload(action.update_id)
            batch.discarded.append(action.update_id)
        self.rejected["unweighed"] += 1
        receipt = Receipt(
            state="later",
            epoch=state.epoch,
            term=state.term,
            reason="unweighed",
            wait_s=self._model.comes_again_s,
        )
        self._say(batch, action.device, action.update_id, receipt)

    def _complete(self, batch: Batch, state: TaskState, device: str, update_id: bytes) -> None:
        """An upload has all its bytes: check them, and decide as if they had come in one message."""
        upload = self._store.upload(update_id)
        if upload is None:
            return
        header, _ = UpdateHeader.unpack(upload.header)
        if self._files.finish(update_id, size=header.size, sha256=header.sha256):
            payload = self._files.read(update_id, header.size)
            self.carry_out(
                batch, state, self._event(batch, state, BeginTopic(device, update_id), header, payload)
            )
            return
        refusal = Refuse(device=device, update_id=update_id, header=header, hash=upload.hash, reason="hash")
        self._refuse(refusal, batch, state)

    def _closed(self, batch: Batch, update_id: bytes) -> bool:
        """Forget an upload, if there is one; whether there was."""
        batch.uploads.pop(update_id, None)
        return self._ended(update_id)

    def _ended(self, update_id: bytes) -> bool:
        self.credit.release(update_id)
        device = self._uploading.pop(update_id, None)
        if device is not None:
            self._open_uploads[device] -= 1
            if not self._open_uploads[device]:
                del self._open_uploads[device]
        return device is not None

    def _say(self, batch: Batch, device: str, update_id: bytes, receipt: Receipt) -> None:
        batch.answers.append((self._topics.receipt(device, update_id), receipt.pack()))


def _new_update(action: Accept, packed: bytes, appraisal: Appraisal) -> NewUpdate:
    return NewUpdate(
        update_id=action.update_id,
        device=action.device,
        hash=action.hash,
        header=packed,
        base=action.header.base,
        size=len(action.payload),
        payload=action.payload if len(action.payload) <= ROW_BYTES else None,
        weight=appraisal.weight,
        scale=appraisal.scale,
        norm=appraisal.norm,
        staleness=appraisal.staleness,
        runtime=action.header.runtime,
    )
