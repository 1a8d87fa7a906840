"""What becomes of a message: a pure function of the task's small state and the rows the message concerns.

The order of the checks is the protocol (invariant "exactly once"): an id that is known gets the same word
for ever, whatever else has changed; then a base below the horizon is stale; only then is it new. The
shell looks up the rows, carries the actions out inside one commit, and speaks after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

from broker_coordinator.storage.records import Outcome, Upload
from fl_protocol.layout import FINGERPRINT_BYTES
from fl_protocol.ranges import MAX_RANGES, ByteRanges
from fl_protocol.receipt import Receipt
from fl_protocol.update import INLINE_BYTES, PLAIN, UpdateHeader
from fl_protocol.version import VersionId

__all__ = [
    "Accept",
    "Action",
    "Answer",
    "AskEvidence",
    "BeginArrived",
    "ChunkArrived",
    "Count",
    "Event",
    "Finish",
    "Invite",
    "MalformedBegin",
    "OpenUpload",
    "OrderSeen",
    "PutRange",
    "Refuse",
    "RollBack",
    "TaskState",
    "decide",
]

ROLLED_BACK_WAIT_S = 600.0
NEWER_BASE_WAIT_S = 60.0
BUSY_WAIT_S = 30.0
MAX_UPLOADS_PER_DEVICE = 4
MAX_CHUNK_BYTES = 120 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """What every decision depends on; a few hundred bytes, whatever the fleet's size.

    ``witnessed`` is the highest epoch in which a newer manifest of ours was proven, 0 where none was.
    ``codec`` is the codec's canonical text, ``payload_size`` the most bytes of an update under it, and where
    ``payload_exact`` the only number of them.
    """

    epoch: int
    term: int
    counter: int
    horizon: tuple[int, int]
    witnessed: int
    version: VersionId
    codec: str
    fingerprint: bytes
    payload_size: int
    payload_exact: bool = True

    @property
    def rolled_back(self) -> bool:
        """Whether our store is older than the world."""
        return self.witnessed > 0

    def __post_init__(self) -> None:
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginArrived:
    """``begin``, and what the store says of it.

    ``known`` is the terminal word on the id, ``counted`` whether the device has an accepted update for
    the base, ``base_known`` whether a version has the base's digest, ``upload`` the bytes so far, and
    ``uploads_open`` how many uploads the device has under way. ``admitted`` is false for a device that is
    not enrolled, or revoked.
    """

    device: str
    update_id: bytes
    header: UpdateHeader
    hash: bytes
    payload: bytes | None
    known: Outcome | None
    counted: bool
    base_known: bool
    upload: Upload | None
    uploads_open: int = 0
    admitted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MalformedBegin:
    """A ``begin`` whose topic names an id and whose body cannot be read."""

    device: str
    update_id: bytes
    known: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkArrived:
    """Payload bytes from ``start`` on; ``size`` is the payload's, from the upload's header; ``admitted`` as
    in ``BeginArrived``."""

    device: str
    update_id: bytes
    start: int
    content: bytes
    known: Outcome | None
    upload: Upload | None
    size: int
    admitted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSeen:
    """Someone has seen a manifest of this (epoch, counter); ``proven`` if it is signed by our key, and then
    ``version_known`` says whether the version in it is one of ours."""

    order: tuple[int, int]
    device: str | None = None
    proven: bool = False
    version_known: bool = True


Event = BeginArrived | MalformedBegin | ChunkArrived | OrderSeen


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Send a receipt; nothing to record."""

    device: str
    update_id: bytes
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """Send an ``open`` receipt for what is missing, with what credit there is."""

    device: str
    update_id: bytes
    missing: ByteRanges


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Append to the journal if the payload decodes, else refuse it; then answer."""

    device: str
    update_id: bytes
    header: UpdateHeader
    hash: bytes
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Record a refusal, and answer it."""

    device: str
    update_id: bytes
    header: UpdateHeader
    hash: bytes
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenUpload:
    """Begin to gather a payload."""

    upload: Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class PutRange:
    """Store payload bytes durably."""

    update_id: bytes
    start: int
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Every byte is here: read the payload, and decide again as if it had come whole."""

    device: str
    update_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AskEvidence:
    """Ask a device for the newest manifest it has verified."""

    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack:
    """Our own signature is on a manifest of ``epoch``, newer than our store: that is an old copy."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Nothing to do but to count, by reason."""

    reason: str


Action = Answer | Invite | Accept | Refuse | OpenUpload | PutRange | Finish | AskEvidence | RollBack | Count


def decide(state: TaskState, event: Event) -> Sequence[Action]:
    """The actions an event calls for, in the order to carry them out."""
    return _decide(event, state)


@singledispatch
def _decide(event: Event, state: TaskState) -> Sequence[Action]:
    raise TypeError(f"no rule for {type(event).__name__}")


@_decide.register
def _begin(event: BeginArrived, state: TaskState) -> Sequence[Action]:
    base = event.header.base
    if event.known is not None:
        if event.known.hash == event.hash:
            return (_same_word(event.device, event.update_id, event.known, state),)
        return _conflict(event, state)
    if state.rolled_back:
        return (_later(event, state, "rolled_back", ROLLED_BACK_WAIT_S),)
    if (base.epoch, base.number) < state.horizon:
        return (_refuse(event, "stale"),)
    if (base.epoch, base.number) > (state.version.epoch, state.version.number):
        return (
            _later(event, state, "newer_base", NEWER_BASE_WAIT_S),
            AskEvidence(device=event.device),
        )
    if not event.admitted:
        return (_refuse(event, "unknown_device"),)
    if not event.base_known:
        refusal = _refuse(event, "unknown_base")
        ours = base.epoch == state.epoch
        return (refusal, AskEvidence(device=event.device)) if ours else (refusal,)
    if reason := _unfit(event.header, state):
        return (_refuse(event, reason),)
    if event.counted:
        return (_refuse(event, "already_counted"),)
    if event.upload is not None and event.upload.hash != event.hash:
        return _conflict(event, state)
    return _payload(event, state)


@_decide.register
def _malformed(event: MalformedBegin, state: TaskState) -> Sequence[Action]:
    if event.known is not None or state.rolled_back:
        return (Count(reason="malformed"),)
    refusal = Receipt(state="refused", epoch=state.epoch, term=state.term, reason="malformed")
    return (
        Count(reason="malformed"),
        Answer(device=event.device, update_id=event.update_id, receipt=refusal),
    )


@_decide.register
def _chunk(event: ChunkArrived, state: TaskState) -> Sequence[Action]:
    if event.known is not None:
        return (
            Count(reason="late_chunk"),
            _same_word(event.device, event.update_id, event.known, state),
        )
    if not event.admitted:
        return (Count(reason="unknown_device"),)
    if event.upload is None or event.upload.device != event.device:
        return (Count(reason="chunk_without_upload"),)
    end = event.start + len(event.content)
    if not 0 < len(event.content) <= MAX_CHUNK_BYTES or end > event.size:
        return (Count(reason="chunk_out_of_bounds"),)
    ranges = event.upload.ranges.add(event.start, end)
    if len(ranges) > MAX_RANGES:
        # Lowest first, as chunks are asked for, there are never so many; each costs a row's rewriting.
        return (Count(reason="chunk_scattered"),)
    put = PutRange(update_id=event.update_id, start=event.start, content=event.content)
    if ranges.missing(event.size):
        return (put,)
    return (put, Finish(device=event.device, update_id=event.update_id))


@_decide.register
def _order(event: OrderSeen, state: TaskState) -> Sequence[Action]:
    # A restored coordinator that has signed again since may have reached the counter it once was at:
    # then the version that it does not know gives it away. In an older epoch such were given up.
    unknown = event.proven and not event.version_known and event.order[0] >= state.epoch
    if event.order <= (state.epoch, state.counter) and not unknown:
        return ()
    if event.proven:
        return (RollBack(epoch=event.order[0]),) if event.order[0] > state.witnessed else ()
    if state.rolled_back:
        return ()
    if event.device is None:
        return (Count(reason="unproven_order"),)
    return (AskEvidence(device=event.device),)


def _payload(event: BeginArrived, state: TaskState) -> Sequence[Action]:
    """The header is good and the update new: what of its payload is here?"""
    header = event.header
    if event.payload is not None:
        return (
            Accept(
                device=event.device,
                update_id=event.update_id,
                header=header,
                hash=event.hash,
                payload=event.payload,
            ),
        )
    everything = ByteRanges.of([(0, header.size)])
    if header.size <= INLINE_BYTES:
        # It travels in ``begin`` itself: a row and a file for each probe would be work for nothing.
        return (Invite(device=event.device, update_id=event.update_id, missing=everything),)
    if event.upload is None:
        if event.uploads_open >= MAX_UPLOADS_PER_DEVICE:
            return (_later(event, state, "busy", BUSY_WAIT_S),)
        upload = Upload(update_id=event.update_id, device=event.device, header=header.pack(), hash=event.hash)
        return (
            OpenUpload(upload=upload),
            Invite(device=event.device, update_id=event.update_id, missing=everything),
        )
    missing = event.upload.ranges.missing(header.size)
    if not missing:
        return (Finish(device=event.device, update_id=event.update_id),)
    return (Invite(device=event.device, update_id=event.update_id, missing=missing),)


def _unfit(header: UpdateHeader, state: TaskState) -> str:
    """Why a header does not fit the task; empty if it does."""
    if header.kind != PLAIN:
        return "kind"
    if header.fingerprint != state.fingerprint:
        return "layout"
    if header.codec != state.codec:
        return "codec"
    if header.size > state.payload_size:
        return "oversize"
    return "codec" if header.size < (state.payload_size if state.payload_exact else 1) else ""


def _same_word(device: str, update_id: bytes, known: Outcome, state: TaskState) -> Answer:
    receipt = Receipt(state=known.state, epoch=state.epoch, term=state.term, reason=known.reason)
    return Answer(device=device, update_id=update_id, receipt=receipt)


def _conflict(event: BeginArrived, state: TaskState) -> Sequence[Action]:
    """The id is bound to another header. Not recorded: the first word on it stands."""
    if state.rolled_back:
        return (_later(event, state, "rolled_back", ROLLED_BACK_WAIT_S),)
    receipt = Receipt(state="refused", epoch=state.epoch, term=state.term, reason="conflict")
    return (
        Count(reason="conflict"),
        Answer(device=event.device, update_id=event.update_id, receipt=receipt),
    )


def _refuse(event: BeginArrived, reason: str) -> Refuse:
    return Refuse(
        device=event.device,
        update_id=event.update_id,
        header=event.header,
        hash=event.hash,
        reason=reason,
    )


def _later(event: BeginArrived, state: TaskState, reason: str, wait_s: float) -> Answer:
    receipt = Receipt(state="later", epoch=state.epoch, term=state.term, reason=reason, wait_s=wait_s)
    return Answer(device=event.device, update_id=event.update_id, receipt=receipt)
