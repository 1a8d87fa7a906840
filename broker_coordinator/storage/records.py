"""What the coordinator remembers: plain, frozen records, free of any array library.

Scalars that the fold depends on are kept as the four little-endian bytes of a float32, so that a replay
starts from the very bits that were used, whatever a database does to a number.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_protocol.ranges import ByteRanges
from fl_protocol.version import DIGEST_BYTES, VersionId

__all__ = [
    "AcceptedUpdate",
    "DeviceEvaluation",
    "DeviceRecord",
    "DoubledDevice",
    "InventoryRow",
    "JournalCounts",
    "Lease",
    "NewUpdate",
    "Office",
    "Outcome",
    "Refusal",
    "RuntimeCounts",
    "Upload",
    "VersionRecord",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """The coordinator's own small state.

    ``term`` counts the starts, and leaps with each backup and epoch; ``counter`` counts the manifests of
    all epochs, ``command_sequence`` the commands. ``witnessed`` is the highest epoch in which devices have
    proven that this state is an old one, 0 where none has: above 0 it is rolled back.
    An update whose base is below ``horizon`` = (epoch, number) is stale for ever. ``anchor`` is the number
    of the oldest version whose state file is kept: replay begins there. ``forgotten`` counts accepted
    updates whose rows were pruned. ``uptime_s`` is the time all terms together have run.
    """

    epoch: int = 1
    term: int = 0
    counter: int = 0
    command_sequence: int = 0
    horizon: tuple[int, int] = (0, 0)
    witnessed: int = 0
    anchor: int = 0
    forgotten: int = 0
    uptime_s: float = 0.0

    @property
    def rolled_back(self) -> bool:
        """Whether the state is older than the world: nothing is published, nothing refused."""
        return self.witnessed > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUpdate:
    """An update about to be accepted; the fields are those of ``AcceptedUpdate``.

    ``payload`` has ``size`` bytes; it is None where it is a file (see ``PayloadFiles``), durable already.
    ``runtime`` is what its header says trained it.
    """

    update_id: bytes
    device: str
    hash: bytes
    header: bytes
    base: VersionId
    size: int
    payload: bytes | None
    weight: bytes
    scale: bytes
    norm: bytes
    staleness: int
    runtime: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedUpdate:
    """A row of the journal.

    ``accept_seq`` is the fold order. ``header`` is ``UpdateHeader.pack()``, ``hash`` the update's hash.
    ``payload`` is None where it is a file, or was pruned: ask ``Store.payload``. ``weight`` is what the
    update adds to the denominator, ``scale`` what its decoded values are multiplied by (staleness weight
    times clip factor), ``norm`` the L2 norm of the decoded values over the codec's expected inflation:
    raw float32 each. ``version`` is the number of the version it was folded into.
    """

    accept_seq: int
    update_id: bytes
    device: str
    hash: bytes
    header: bytes
    base: tuple[int, int]
    payload: bytes | None
    weight: bytes
    scale: bytes
    norm: bytes
    staleness: int
    state: str
    """``waiting``, ``folded`` or ``quarantined``."""
    version: int | None = None
    reason: str = ""

    @classmethod
    def of(cls, update: NewUpdate, accept_seq: int) -> "AcceptedUpdate":
        """The row of an update that was just accepted."""
        return cls(
            accept_seq=accept_seq,
            update_id=update.update_id,
            device=update.device,
            hash=update.hash,
            header=update.header,
            base=(update.base.epoch, update.base.number),
            payload=update.payload,
            weight=update.weight,
            scale=update.scale,
            norm=update.norm,
            staleness=update.staleness,
            state="waiting",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalCounts:
    """Rows of the journal by state, and refusals that are remembered."""

    waiting: int = 0
    folded: int = 0
    quarantined: int = 0
    refused: int = 0

    @property
    def accepted(self) -> int:
        """All rows."""
        return self.waiting + self.folded + self.quarantined


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeCounts:
    """Updates that one runtime trained, since the first start: pruned ones are still counted."""

    accepted: int = 0
    folded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The terminal word on an update id: ``state`` is ``done`` or ``refused``; bound to ``hash``.

    A quarantined update is ``done`` for its device: it was accepted, and the fault is ours to show.
    """

    hash: bytes
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an update is refused: ``reason`` is one of ``fl_protocol.receipt.REFUSALS``."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """A committed version.

    ``digest`` is the sha256 of its state file, ``published_sha256`` that of the ``encode_model`` blob,
    ``rules`` the name of the fold rules (``Store.put_rules``) that made it. Every update up to
    ``through_seq`` is in it or in an earlier one; ``updates`` are in this one. ``metrics`` holds the
    coordinator's own evaluation, empty where there is none. ``closed_at`` is for people to read.
    ``uptime_s`` is set by the store: the office's when the version was committed.
    """

    epoch: int
    number: int
    digest: bytes
    published_sha256: bytes
    rules: str
    through_seq: int
    updates: int
    closed_by: str
    """``initial``, ``size``, ``deadline``, ``quarantine`` (see ``Buffer.closes``) or ``recover``."""
    term: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    published: bool = False
    closed_at: float = 0.0
    uptime_s: float = 0.0

    @property
    def id(self) -> VersionId:
        """What travels as this version's identity."""
        return VersionId(epoch=self.epoch, number=self.number, digest=self.digest[:DIGEST_BYTES])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """What is known of a device; ``last_seen`` is a sequence that grows with every sign of life."""

    device: str
    incarnation: bytes | None = None
    online: bool = False
    session: bytes = b""
    agent: str = ""
    runtimes: tuple[str, ...] = ()
    """Those it may train with."""
    runtime: str = ""
    """The one that trained its newest accepted update."""
    samples: int = 0
    idle_reason: str = ""
    accepted: int = 0
    refused: int = 0
    forgotten: int = 0
    """Accepted updates of this device whose rows were pruned."""
    bytes_up: int = 0
    last_base: int | None = None
    last_seen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubledDevice:
    """An identity that two live devices share: how often one of them took the other's place, and ``how``,
    in words, by the last time. ``seen_at`` is that time, for people to read."""

    device: str
    count: int
    how: str
    seen_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvaluation:
    """What devices measured of one published version: ``sums`` over ``devices`` reports, e.g. ``loss``,
    ``weight`` (examples) and ``correct``."""

    devices: int
    sums: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A large payload under way: ``ranges`` are the bytes that are durable in its part file."""

    update_id: bytes
    device: str
    header: bytes
    hash: bytes
    ranges: ByteRanges = field(default_factory=ByteRanges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """``device`` was asked to train on ``version``; ``deadline`` in seconds of the clock that granted it."""

    lease_id: bytes
    device: str
    version: VersionId
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryRow:
    """A retained topic of ours: the sha256 of its payload, and the first version that needed it."""

    topic: str
    sha256: bytes
    first_version: int
