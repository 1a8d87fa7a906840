"""The outbox: updates that the coordinator has not yet answered for, and the ledger of all that were made.

One sqlite file in WAL mode with ``synchronous=FULL``: a verb returns after its commit is on the disk. An
update leaves only by the coordinator's own word (``settle``) or by the drop policy: when the box would pass
``max_bytes`` its oldest entries expire, and so do entries older than ``max_age_s``, and those that were never
sent and would be refused as late. The ledger says which. A base is spent by an update that waits or was
counted: one that was refused, expired or destroyed gives it back, or a version of which nobody's update was
taken would be the last.

An agent has a file of its own, and box 0 in it. Agents of one process may share a file (``OutboxFile``), a
box each.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from edge_agent.box_memory import BoxMemory
from edge_agent.device_state import DeviceState, find_state, keep_state
from edge_agent.outbox_counts import CODEC_STATE, OutboxCounts, counted, residual_bytes
from edge_agent.outbox_file import OutboxFile
from edge_agent.sqlite_file import Commit, commit
from fl_protocol.clock import Clock
from fl_protocol.errors import StorageError
from fl_protocol.update import INLINE_BYTES, UpdateHeader
from fl_protocol.version import VersionId

__all__ = [
    "LEDGER_ROWS",
    "OUTCOMES",
    "LedgerRow",
    "Outbox",
    "OutboxEntry",
]

LEDGER_ROWS = 10_000
OUTCOMES = ("created", "done", "refused", "expired", "destroyed")
_FOR_EVER = ("already_counted", "stale", "late", "layout", "kind")
"""Reasons for which no other update from the same base would be taken either."""
_KEPT_BASES = 1_000
_AGES_SAVED_EVERY_S = 3600.0
_BEFORE_ALL = VersionId(epoch=-1, number=0, digest=b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEntry:
    """One update that waits: ``header`` is ``UpdateHeader.pack()`` without payload, ``size`` the payload's.

    ``sequence`` is that of its ``created`` row in the ledger: the smaller, the older.
    """

    sequence: int
    update_id: bytes
    header: bytes
    base: VersionId
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One line of the ledger; ``outcome`` is one of ``OUTCOMES``."""

    sequence: int
    update_id: bytes
    outcome: str
    reason: str


class Outbox:
    """One outbox of a file; used from one thread of one process at a time.

    Age counts the seconds in which the agent ran: a device may boot without knowing the date. A file that is
    given open stays open: it has other boxes.

    Raises:
        StorageError: from every method, if the file is damaged or the disk refuses. A verb that raised
            changed nothing.
    """

    __slots__ = (
        "_ages_saved_at",
        "_box",
        "_clock",
        "_db",
        "_file",
        "_max_age_s",
        "_max_bytes",
        "_memory",
        "_shared",
        "_translated",
        "commits",
        "given_back",
    )

    def __init__(
        self, file: Path | OutboxFile, *, max_bytes: int, max_age_s: float, clock: Clock, box: int = 0
    ) -> None:
        self.commits = 0
        """Commits so far: an fsync each, and one or two more now and then as sqlite moves its log."""
        self.given_back = 0
        """Bases that updates gave back since this process began."""
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._box = box
        self._ages_saved_at = clock.monotonic()
        self._file = file if isinstance(file, OutboxFile) else OutboxFile(file)
        self._shared = isinstance(file, OutboxFile)
        self._db = self._file.db
        self._translated = self._file.translated
        self._memory = BoxMemory()

    def put(
        self,
        update_id: bytes,
        header: UpdateHeader,
        payload: bytes,
        *,
        codec_state: bytes | None = None,
        device_state: DeviceState | None = None,
    ) -> OutboxEntry:
        """Keep an update: payload, header, ledger row, the codec's state and the device's in one commit.

        The codec's state (``None``: as it was) counts into ``max_bytes`` too: older updates give way to it.

        Raises:
            StorageError: also if payload and codec state alone are larger than the whole box.
        """
        packed = header.pack()
        left = self._residual_bytes() if codec_state is None else len(codec_state)
        cost = len(payload) + len(packed)
        if cost + left > self._max_bytes:
            beside = f", and {left} of what it leaves out," if left else ""
            raise StorageError(
                f"an update of {cost} bytes{beside} does not fit into an outbox of {self._max_bytes}",
                hint="raise max_bytes under [outbox] in agent.toml",
            )
        with self._commit(purpose="agent.update") as db:
            used = self._make_room(db, cost + left)
            sequence = self._append(db, update_id, "created", "")
            base = header.base
            age_s = self._ages_saved_at - self._clock.monotonic()
            db.execute(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (update_id, sequence, packed, *_key(base), len(payload), age_s, payload, self._box),
            )
            db.execute("INSERT OR REPLACE INTO bases VALUES (?, ?, ?, ?, ?)", (*self._key(base), sequence))
            if sequence > _KEPT_BASES:
                db.execute(
                    "DELETE FROM bases WHERE box = ?1 AND sequence <= "
                    "(SELECT sequence FROM bases WHERE box = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?2)",
                    (self._box, _KEPT_BASES),
                )
            if codec_state is not None:
                self._put_facts(db, {CODEC_STATE: codec_state})
            if device_state is not None:
                keep_state(db, device_state, sequence, box=self._box)
                self._memory.has_device_state = True
            self._memory.used_bytes = used + cost
        self._memory.asked = base, True
        if self._memory.newest is not None:
            self._memory.newest = max(self._memory.newest, base, key=_order)
        self._memory.sent_next = (update_id, payload) if len(payload) <= INLINE_BYTES else None
        return OutboxEntry(
            sequence=sequence, update_id=update_id, header=packed, base=base, size=len(payload)
        )

    def entries(self) -> tuple[OutboxEntry, ...]:
        """All updates that wait, oldest first."""
        with self._translated:
            rows = self._db.execute(
                "SELECT sequence, update_id, header, epoch, number, digest, size"
                " FROM outbox WHERE box = ? ORDER BY sequence",
                (self._box,),
            ).fetchall()
        return tuple(
            OutboxEntry(
                sequence=sequence,
                update_id=update_id,
                header=header,
                base=VersionId(epoch=epoch, number=number, digest=digest),
                size=size,
            )
            for sequence, update_id, header, epoch, number, digest, size in rows
        )

    def payload_range(self, update_id: bytes, start: int, end: int) -> bytes:
        """Bytes ``[start, end)`` of a payload, without reading the rest of it.

        Raises:
            KeyError: no such update waits (any more).
        """
        kept = self._memory.take_payload(update_id, start, end)
        if kept is not None:
            return kept
        with self._translated:
            row = self._db.execute("SELECT rowid FROM outbox WHERE update_id = ?", (update_id,)).fetchone()
            if row is None:
                raise KeyError(update_id)
            with self._db.blobopen("outbox", "payload", row[0], readonly=True) as blob:
                blob.seek(min(start, len(blob)))
                return blob.read(max(end - start, 0))

    def settle(self, update_id: bytes, outcome: str, reason: str = "") -> bool:
        """Let an update go with its outcome, in one commit; ``False`` if it does not wait here.

        ``done`` and ``refused`` are the coordinator's; ``destroyed`` is for one that cannot be read.
        """
        if outcome not in ("done", "refused", "destroyed"):
            raise ValueError(f"{outcome!r} does not settle an update")
        with self._commit(purpose="agent.settle") as db:
            return self._let_go(db, update_id, outcome, reason)

    def expire_late(self, update_id: bytes) -> None:
        """Let go of an update of which nothing was ever sent, because it would be refused as late."""
        with self._commit(purpose="agent.expire") as db:
            self._let_go(db, update_id, "expired", "late")

    def expire_old(self) -> list[bytes]:
        """Let go of the entries that waited too long; the ids that went."""
        now = self._clock.monotonic()
        elapsed = now - self._ages_saved_at
        with self._translated:
            rows = self._db.execute(
                "SELECT update_id FROM outbox WHERE box = ? AND age_s + ? >= ? ORDER BY sequence",
                (self._box, elapsed, self._max_age_s),
            ).fetchall()
        expired = [update_id for (update_id,) in rows]
        if expired:
            with self._commit(purpose="agent.expire") as db:
                for update_id in expired:
                    self._let_go(db, update_id, "expired", "age")
        if elapsed >= _AGES_SAVED_EVERY_S:
            self._save_ages(now)
        return expired

    def made_update_for(self, base: VersionId) -> bool:
        """Whether an update that this state directory made from ``base`` waits, or was counted (of the last
        1,000 bases)."""
        asked = self._memory.asked
        if asked is not None and (asked[0] is base or asked[0] == base):
            return asked[1]
        made = False
        if _order(base) <= _order(self._newest_base()):
            with self._translated:
                row = self._db.execute(
                    "SELECT 1 FROM bases WHERE box = ? AND epoch = ? AND number = ? AND digest = ?",
                    self._key(base),
                ).fetchone()
            made = row is not None
        self._memory.asked = base, made
        return made

    def ledger(self, limit: int = LEDGER_ROWS) -> tuple[LedgerRow, ...]:
        """The newest ``limit`` rows, oldest of them first."""
        with self._translated:
            rows = self._db.execute(
                "SELECT sequence, update_id, outcome, reason FROM ledger WHERE box = ?"
                " ORDER BY sequence DESC LIMIT ?",
                (self._box, limit),
            ).fetchall()
        return tuple(
            LedgerRow(sequence=sequence, update_id=update_id, outcome=outcome, reason=reason)
            for sequence, update_id, outcome, reason in reversed(rows)
        )

    def counts(self) -> OutboxCounts:
        """Totals by outcome and what waits now."""
        with self._translated:
            return counted(self._db, self._box)

    def remember(self, key: str, value: bytes) -> None:
        """Keep a small durable fact, replacing an older one; costs no write where it is the same."""
        self.remember_all({key: value})

    def remember_all(self, facts: dict[str, bytes]) -> None:
        """Keep several facts in one commit: all of them, or none."""
        changed = [(key, value) for key, value in facts.items() if self.recall(key) != value]
        if changed:
            with self._commit(purpose="agent.facts") as db:
                self._put_facts(db, dict(changed))

    def recall(self, key: str) -> bytes | None:
        """A fact as it was last remembered."""
        if key in self._memory.facts:
            return self._memory.facts[key]
        with self._translated:
            row = self._db.execute(
                "SELECT value FROM facts WHERE box = ? AND key = ?", (self._box, key)
            ).fetchone()
        value = bytes(row[0]) if row else None
        self._memory.note_fact(key, value)
        return value

    def codec_state(self) -> bytes:
        """What the encoding of the newest update left, whatever became of that update; empty if nothing."""
        return self.recall(CODEC_STATE) or b""

    def device_state(self, artifact: bytes) -> DeviceState | None:
        """The device state kept for an artifact (by its digest), or else the newest."""
        if self._memory.has_device_state is False:
            return None
        with self._translated:
            state = find_state(self._db, artifact, box=self._box)
        self._memory.has_device_state = state is not None
        return state

    def drop_device_state(self, artifact: bytes) -> None:
        """Forget the device state of an artifact."""
        with self._commit(purpose="agent.drop_state") as db:
            db.execute("DELETE FROM device_states WHERE box = ? AND artifact = ?", (self._box, artifact))
            self._memory.has_device_state = None

    def close(self) -> None:
        """Save the ages, and close the file if no other box is in it."""
        try:
            self._save_ages(self._clock.monotonic())
        finally:
            if not self._shared:
                self._file.close()

    def _newest_base(self) -> VersionId:
        """The newest base that an update was made from; one before all others where there is none."""
        newest = self._memory.newest
        if newest is None:
            with self._translated:
                row = self._db.execute(
                    "SELECT epoch, number, digest FROM bases WHERE box = ?"
                    " ORDER BY epoch DESC, number DESC LIMIT 1",
                    (self._box,),
                ).fetchone()
            newest = VersionId(epoch=row[0], number=row[1], digest=row[2]) if row else _BEFORE_ALL
            self._memory.newest = newest
        return newest

    def _residual_bytes(self) -> int:
        if self._memory.residual_bytes is None:
            with self._translated:
                self._memory.residual_bytes = residual_bytes(self._db, f" WHERE box = {self._box}")
        return self._memory.residual_bytes

    def _make_room(self, db: sqlite3.Connection, cost: int) -> int:
        """Let the oldest go until ``cost`` bytes more fit; the bytes of what is left."""
        while (used := self._used_bytes(db)) + cost > self._max_bytes:
            (update_id,) = db.execute(
                "SELECT update_id FROM outbox WHERE box = ? ORDER BY sequence LIMIT 1", (self._box,)
            ).fetchone()
            self._let_go(db, update_id, "expired", "full")
        return used

    def _used_bytes(self, db: sqlite3.Connection) -> int:
        if self._memory.used_bytes is None:
            (used,) = db.execute(
                "SELECT coalesce(sum(size + length(header)), 0) FROM outbox WHERE box = ?", (self._box,)
            ).fetchone()
            self._memory.used_bytes = int(used)
        return self._memory.used_bytes

    def _let_go(self, db: sqlite3.Connection, update_id: bytes, outcome: str, reason: str) -> bool:
        gone = db.execute(
            "DELETE FROM outbox WHERE update_id = ? AND box = ? RETURNING size + length(header), sequence",
            (update_id, self._box),
        ).fetchall()
        if not gone:
            return False
        cost, sequence = gone[0]
        if self._memory.used_bytes is not None:
            self._memory.used_bytes -= cost
        self._memory.forget_payload(update_id)
        if outcome != "done" and reason not in _FOR_EVER:
            db.execute("DELETE FROM bases WHERE box = ? AND sequence = ?", (self._box, sequence))
            self._memory.asked = None
            self.given_back += 1
        self._append(db, update_id, outcome, reason)
        return True

    def _save_ages(self, now: float) -> None:
        elapsed = now - self._ages_saved_at
        with self._translated:
            waiting = self._db.execute("SELECT 1 FROM outbox WHERE box = ? LIMIT 1", (self._box,)).fetchone()
        if waiting and elapsed > 0:
            with self._commit(purpose="agent.ages") as db:
                db.execute("UPDATE outbox SET age_s = age_s + ? WHERE box = ?", (elapsed, self._box))
        self._ages_saved_at = now

    def _commit(self, *, purpose: str) -> "_BoxCommit":
        return _BoxCommit(self, commit(self._db, purpose=purpose))

    def _append(self, db: sqlite3.Connection, update_id: bytes, outcome: str, reason: str) -> int:
        newest = self._memory.sequence
        if newest is None:
            (found,) = db.execute("SELECT max(sequence) FROM ledger WHERE box = ?", (self._box,)).fetchone()
            newest = found or 0
        sequence = self._memory.sequence = newest + 1
        db.execute(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?)", (self._box, sequence, update_id, outcome, reason)
        )
        if sequence > LEDGER_ROWS:
            db.execute(
                "DELETE FROM ledger WHERE box = ? AND sequence <= ?", (self._box, sequence - LEDGER_ROWS)
            )
        db.execute(
            "INSERT INTO totals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
            (self._box, outcome),
        )
        return sequence

    def _put_facts(self, db: sqlite3.Connection, facts: Mapping[str, bytes]) -> None:
        db.executemany(
            "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)",
            [(self._box, key, value) for key, value in facts.items()],
        )
        for key, value in facts.items():
            self._memory.note_fact(key, value)
            if key == CODEC_STATE:
                self._memory.residual_bytes = len(value)

    def _key(self, base: VersionId) -> Sequence[object]:
        return self._box, *_key(base)


class _BoxCommit:
    """A commit of one outbox: counted, or all that was known of the file is forgotten."""

    __slots__ = ("_commit", "_outbox")

    def __init__(self, outbox: Outbox, commit: Commit) -> None:
        self._outbox, self._commit = outbox, commit

    def __enter__(self) -> sqlite3.Connection:
        outbox = self._outbox
        try:
            with outbox._translated:
                self._commit.__enter__()
        except BaseException:
            outbox._memory = BoxMemory()
            raise
        return outbox._db

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outbox = self._outbox
        try:
            with outbox._translated:
                self._commit.__exit__(kind, error, trace)
                if error is not None:
                    raise error
        except BaseException:
            outbox._memory = BoxMemory()
            raise
        outbox.commits += 1


def _order(base: VersionId) -> tuple[int, int]:
    return base.epoch, base.number


def _key(base: VersionId) -> Sequence[object]:
    return base.epoch, base.number, base.digest
