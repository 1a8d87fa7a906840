"""The coordinator's store: verbs, never statements of a query language.

Everything that must survive a crash goes through here. A verb is durable when it returns; verbs inside
``transaction()`` become durable together when it ends, or not at all. One thread writes; others read
through a store of their own, opened read-only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from broker_coordinator.storage.records import (
    AcceptedUpdate,
    DeviceEvaluation,
    DeviceRecord,
    DoubledDevice,
    InventoryRow,
    JournalCounts,
    Lease,
    NewUpdate,
    Office,
    Outcome,
    RuntimeCounts,
    Upload,
    VersionRecord,
)
from fl_protocol.presence import DevicePresence
from fl_protocol.version import VersionId

__all__ = ["Journal", "Store"]


class Journal(Protocol):
    """The accepted updates, in the order they were accepted: what every version is made from.

    Raises:
        StorageError: from every verb, if the disk is full, failing, or was damaged.
    """

    def outcome(self, update_id: bytes) -> Outcome | None:
        """The terminal word on an update id, if it was given (and is not pruned below the horizon)."""
        ...

    def counted(self, device: str, base: VersionId) -> bool:
        """Whether an accepted update of this device for this (epoch, number) is there already."""
        ...

    def accept(self, update: NewUpdate) -> int:
        """Append to the journal; the new row's ``accept_seq``, greater than every one before.

        Ends the update's upload, if there is one, in the same commit.

        Raises:
            StorageError: also if the id is known already, or the device counted for that base: a caller
                that did not ask ``outcome`` and ``counted`` first.
        """
        ...

    def accept_all(self, updates: Sequence[NewUpdate]) -> Sequence[int]:
        """``accept`` in the order given; their ``accept_seq``, one after the other. None of them, if one
        cannot be."""
        ...

    def refuse(self, update_id: bytes, *, hash: bytes, device: str, base: VersionId, reason: str) -> None:
        """Remember a refusal, so that the same update gets the same word for ever; ends its upload."""
        ...

    def quarantine(self, accept_seq: int, reason: str) -> None:
        """Set a waiting update aside: it will never be folded."""
        ...

    def quarantined_after(self, accept_seq: int) -> Sequence[int]:
        """``accept_seq`` of the updates that were set aside, of those above the given one."""
        ...

    def waiting(self) -> Iterator[AcceptedUpdate]:
        """Accepted, not yet folded; by ``accept_seq``, a bounded number in memory at a time."""
        ...

    def folded_into(self, number: int) -> Iterator[AcceptedUpdate]:
        """The updates of version ``number``, by ``accept_seq``."""
        ...

    def last_folded(self, device: str, after: int, through: int) -> AcceptedUpdate | None:
        """The newest update of a device in the versions above ``after``, up to ``through``, whose payload was
        not pruned."""
        ...

    def last_words(self, version: int, through: int) -> Iterator[AcceptedUpdate]:
        """The updates of ``version`` whose payload was not pruned and whose device has no newer such one up
        to version ``through``; by ``accept_seq``."""
        ...

    def devices_folded(self, after: int, through: int) -> int:
        """How many devices have an update as ``last_folded`` finds it."""
        ...

    def payload(self, update: AcceptedUpdate) -> bytes | None:
        """The payload of a row, from the row or its file; None where it was pruned, or its file is gone."""
        ...

    def payload_files(self) -> Iterator[bytes]:
        """The ids of the updates whose payload is a file."""
        ...

    def device_evaluation(self, number: int) -> DeviceEvaluation:
        """Sums of the ``before.*`` metrics of accepted updates whose base is version ``number``."""
        ...

    def counts(self) -> JournalCounts:
        """How many rows are in which state."""
        ...

    def runtimes(self) -> Mapping[str, RuntimeCounts]:
        """Accepted and folded updates by the name of the runtime that trained them; 32 names at most, what
        has another is counted as ``other``."""
        ...

    def rows(self) -> Iterator[AcceptedUpdate]:
        """Every row there is by ``accept_seq``, without its payload; for audits."""
        ...


class Store(Journal, Protocol):
    """All that the coordinator remembers. See ``Journal`` for what verbs raise."""

    def transaction(self, purpose: str = "") -> AbstractContextManager[None]:
        """Commit the verbs inside together; undo them all if the block raises. Nested ones join.
        ``purpose`` begins the names of the crash points before and after the commit.

        In a read-only store, all reads inside see one moment.
        """
        ...

    def close(self) -> None:
        """Release the files."""
        ...

    # The office

    def office(self) -> Office:
        """The coordinator's own small state."""
        ...

    def take_office(self) -> Office:
        """Begin a new term."""
        ...

    def open_epoch(self) -> Office:
        """Begin an epoch above this one and every one that devices have witnessed, and leave the rolled-back
        state: an operator's decision. The term leaps too, above any that devices may have obeyed."""
        ...

    def next_counter(self) -> int:
        """A new manifest counter."""
        ...

    def next_command_sequence(self) -> int:
        """A new command number."""
        ...

    def raise_horizon(self, to: tuple[int, int]) -> None:
        """Move the horizon up to (epoch, number); a lower one changes nothing."""
        ...

    def roll_back(self, epoch: int) -> None:
        """Enter the rolled-back state: a device has proven a manifest of that epoch, newer than ours."""
        ...

    def add_uptime(self, seconds: float) -> None:
        """Count running time; not negative."""
        ...

    # Payloads under way

    def open_upload(self, upload: Upload) -> None:
        """Begin to gather a large payload; one that is there already stays as it is."""
        ...

    def upload(self, update_id: bytes) -> Upload | None:
        """The upload of an update id."""
        ...

    def put_range(self, update_id: bytes, start: int, end: int) -> Upload:
        """Record ``[start, end)`` as durable (call after the fsync of the part file); the upload now.

        Raises:
            StorageError: also if there is no such upload.
        """
        ...

    def reset_upload(self, update_id: bytes) -> None:
        """Forget the ranges: the part file is gone or damaged."""
        ...

    def close_upload(self, update_id: bytes) -> None:
        """Forget an upload, if it is there."""
        ...

    def uploads(self) -> Sequence[Upload]:
        """All uploads under way."""
        ...

    # Versions

    def commit_version(self, version: VersionRecord) -> None:
        """In one commit: the version, and every update waiting up to its ``through_seq`` folded into it.

        Raises:
            StorageError: also if the number of rows folded is not the record's ``updates``, or the
                number is not the next one: nothing is committed then.
        """
        ...

    def version(self, number: int) -> VersionRecord | None:
        """The version of that number."""
        ...

    def newest_version(self) -> VersionRecord | None:
        """The newest version; None before the first."""
        ...

    def versions(self, limit: int | None = None) -> Sequence[VersionRecord]:
        """The newest ``limit`` versions, oldest first."""
        ...

    def base_known(self, base: VersionId) -> bool:
        """Whether a version of that epoch and number has that digest."""
        ...

    def set_evaluation(self, number: int, metrics: dict[str, float]) -> None:
        """Record the coordinator's own evaluation of a version."""
        ...

    def mark_published(self, number: int) -> None:
        """Record that a version went out whole."""
        ...

    def put_rules(self, text: str) -> str:
        """Keep fold rules (canonical JSON) under their name, the sha256 of the text in hex."""
        ...

    def rules(self, name: str) -> str | None:
        """The fold rules of that name."""
        ...

    # Devices and leases

    def device_seen(self, device: str, presence: DevicePresence | None = None) -> None:
        """Note a sign of life; a presence updates the rest. A farewell counts only in its own session."""
        ...

    def count_update(
        self,
        device: str,
        *,
        accepted: bool,
        bytes_up: int,
        base: int | None = None,
        runtime: str | None = None,
        count: int = 1,
    ) -> None:
        """Add to a device's counts: its updates by outcome, and bytes; ``count`` 0 adds bytes alone.

        ``base`` and ``runtime`` are the newest accepted update's, None where there is none.
        """
        ...

    def count_accepted(self, updates: Sequence[NewUpdate]) -> None:
        """``count_update`` for updates that were just accepted."""
        ...

    def device(self, device: str) -> DeviceRecord | None:
        """One device."""
        ...

    def devices(self) -> Sequence[DeviceRecord]:
        """All devices, by name."""
        ...

    def ready(self, version: VersionId, *, most: int, fair: bool) -> Sequence[str]:
        """At most ``most`` devices to ask for an update on ``version``: on line, with samples, without a
        lease, and without an accepted update on it. Those with the fewest turns first where ``fair``, else
        from a point that the version's digest draws; ties by each device's own draw, which a grant renews.
        Reads about as many rows as it gives and skips, whatever the fleet's size.
        """
        ...

    def count_ready(self, *, most: int) -> int:
        """Devices on line that have samples; counts no further than ``most``."""
        ...

    def note_double(self, device: str, *, how: str, seen_at: float) -> None:
        """Count that two live devices were seen under one identity."""
        ...

    def doubles(self) -> Sequence[DoubledDevice]:
        """All such identities, by name."""
        ...

    def grant_lease(self, lease: Lease) -> None:
        """Record a lease; one of the same id is replaced. The device's draw is made anew from the id."""
        ...

    def end_lease(self, lease_id: bytes) -> bool:
        """Forget a lease; whether it was there."""
        ...

    def lapse_lease(self, lease_id: bytes) -> bool:
        """Forget a lease that no update answered; it counts as a turn of its device."""
        ...

    def leases(self) -> Sequence[Lease]:
        """All leases, by deadline."""
        ...

    # What is on the broker

    def inventory(self) -> Sequence[InventoryRow]:
        """Our retained topics, by topic."""
        ...

    def replace_inventory(self, rows: Sequence[InventoryRow]) -> None:
        """Replace the inventory as a whole."""
        ...

    # Retention

    def payload_bytes(self) -> Sequence[tuple[int, int]]:
        """(version number, bytes of retained payloads folded into it), oldest first, none that are 0."""
        ...

    def drop_payloads(self, through: int, *, spare: int = 0) -> Sequence[bytes]:
        """Drop the payloads of versions up to number ``through``, but for its newest ``spare`` versions, and
        make it the anchor; the ids of those
        that are files, so that the caller removes them after this commit."""
        ...

    def forget(self, *, most: int) -> int:
        """Prune the oldest journal rows, refusals and version records beyond ``most`` of each; how many
        journal rows went.

        A journal row goes only if its payload was dropped and its base is below the horizon: should its
        update come again, it is refused as stale. A forgotten refusal costs at most a second judgement.
        """
        ...
