"""The store's verbs on the office, versions, rules and retention, on sqlite."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from broker_coordinator.records import Office, VersionRecord
from broker_coordinator.sqlite_database import Database
from fl_protocol.errors import StorageError
from fl_protocol.version import DIGEST_BYTES, VersionId

__all__ = ["SqliteVersions"]

_OFFICE = (
    "epoch, term, counter, command_sequence, horizon_epoch, horizon_number, rolled_back, anchor, forgotten,"
    " uptime_s"
)
_COLUMNS = (
    "number, epoch, digest, published_sha256, rules, through_seq, updates, closed_by, term, metrics,"
    " published, closed_at, uptime_s"
)
_FORGET_AT_ONCE = 10_000


class SqliteVersions:
    """See ``broker_coordinator.store.Store``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def office(self) -> Office:
        """The coordinator's own small state."""
        row = self._database.row(f"SELECT {_OFFICE} FROM office")
        if row is None:
            raise StorageError(f"{self._database.path} holds no office")
        (epoch, term, counter, sequence, horizon_epoch, horizon_number, rolled_back, *rest) = row
        anchor, forgotten, uptime_s = rest
        return Office(
            epoch=epoch,
            term=term,
            counter=counter,
            command_sequence=sequence,
            horizon=(horizon_epoch, horizon_number),
            rolled_back=bool(rolled_back),
            anchor=anchor,
            forgotten=forgotten,
            uptime_s=uptime_s,
        )

    def take_office(self) -> Office:
        """Begin a new term."""
        return self._office_after("UPDATE office SET term = term + 1")

    def open_epoch(self) -> Office:
        """Begin a higher epoch."""
        return self._office_after("UPDATE office SET epoch = epoch + 1, rolled_back = 0")

    def next_counter(self) -> int:
        """A new manifest counter."""
        return self._office_after("UPDATE office SET counter = counter + 1").counter

    def next_command_sequence(self) -> int:
        """A new command number."""
        return self._office_after(
            "UPDATE office SET command_sequence = command_sequence + 1"
        ).command_sequence

    def raise_horizon(self, to: tuple[int, int]) -> None:
        """Move the horizon up."""
        self._database.change(
            "UPDATE office SET horizon_epoch = ?1, horizon_number = ?2"
            " WHERE (horizon_epoch, horizon_number) < (?1, ?2)",
            to,
        )

    def set_rolled_back(self, flag: bool) -> None:
        """Enter or leave the rolled-back state."""
        self._database.change("UPDATE office SET rolled_back = ?", (int(flag),))

    def add_uptime(self, seconds: float) -> None:
        """Count running time."""
        self._database.change("UPDATE office SET uptime_s = uptime_s + ?", (max(seconds, 0.0),))

    def commit_version(self, version: VersionRecord) -> None:
        """Version and folded rows, in one commit."""
        newest = self.newest_version()
        if newest is not None and (
            version.number != newest.number + 1
            or version.epoch < newest.epoch
            or version.through_seq < newest.through_seq
        ):
            raise StorageError(
                f"version {version.epoch}.{version.number} does not follow {newest.epoch}.{newest.number}"
            )
        with self._database.transaction():
            folded, _ = self._database.change(
                "UPDATE updates SET state = 'folded', version = ?"
                " WHERE state = 'waiting' AND accept_seq <= ?",
                (version.number, version.through_seq),
            )
            if folded != version.updates:
                raise StorageError(
                    f"version {version.number} was made from {version.updates} updates,"
                    f" but {folded} wait up to {version.through_seq}"
                )
            self._database.change(
                f"INSERT INTO versions ({_COLUMNS})"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT uptime_s FROM office))",
                (
                    version.number,
                    version.epoch,
                    version.digest,
                    version.published_sha256,
                    version.rules,
                    version.through_seq,
                    version.updates,
                    version.closed_by,
                    version.term,
                    json.dumps(dict(version.metrics)),
                    int(version.published),
                    version.closed_at,
                ),
            )
            if newest is None:
                self._database.change("UPDATE office SET anchor = ?", (version.number,))

    def version(self, number: int) -> VersionRecord | None:
        """One version."""
        row = self._database.row(f"SELECT {_COLUMNS} FROM versions WHERE number = ?", (number,))
        return _version(row) if row is not None else None

    def newest_version(self) -> VersionRecord | None:
        """The newest version."""
        row = self._database.row(f"SELECT {_COLUMNS} FROM versions ORDER BY number DESC LIMIT 1")
        return _version(row) if row is not None else None

    def versions(self, limit: int | None = None) -> Sequence[VersionRecord]:
        """The newest versions, oldest first."""
        rows = self._database.rows(
            f"SELECT {_COLUMNS} FROM versions ORDER BY number DESC LIMIT ?", (-1 if limit is None else limit,)
        )
        return [_version(row) for row in reversed(rows)]

    def base_known(self, base: VersionId) -> bool:
        """Whether a version has that epoch, number and digest."""
        row = self._database.row(
            "SELECT digest FROM versions WHERE number = ? AND epoch = ?", (base.number, base.epoch)
        )
        return row is not None and bytes(row[0][:DIGEST_BYTES]) == base.digest

    def set_evaluation(self, number: int, metrics: dict[str, float]) -> None:
        """Record an evaluation."""
        self._change_version(number, "metrics = ?", json.dumps(metrics))

    def mark_published(self, number: int) -> None:
        """Record that a version went out."""
        self._change_version(number, "published = ?", 1)

    def put_rules(self, text: str) -> str:
        """Keep fold rules under their hash."""
        name = hashlib.sha256(text.encode()).hexdigest()
        self._database.change("INSERT OR IGNORE INTO rules VALUES (?, ?)", (name, text))
        return name

    def rules(self, name: str) -> str | None:
        """The fold rules of that name."""
        row = self._database.row("SELECT text FROM rules WHERE name = ?", (name,))
        return row[0] if row is not None else None

    def payload_bytes(self) -> Sequence[tuple[int, int]]:
        """(version number, bytes of its retained payloads)."""
        rows = self._database.rows(
            "SELECT version, SUM(size) FROM updates WHERE stored <> 'dropped' AND version IS NOT NULL"
            " GROUP BY version ORDER BY version"
        )
        return [(number, size) for number, size in rows]

    def drop_payloads(self, through: int) -> Sequence[bytes]:
        """Drop payloads up to a version, which becomes the anchor."""
        version = self.version(through)
        if version is None:
            raise StorageError(f"there is no version {through}: its payloads cannot be dropped")
        with self._database.transaction():
            self._database.change("UPDATE office SET anchor = ?1 WHERE anchor < ?1", (through,))
            concerned = (
                "stored <> 'dropped' AND (version <= ?1 OR (state = 'quarantined' AND accept_seq <= ?2))"
            )
            values = (through, version.through_seq)
            files = self._database.rows(
                f"SELECT update_id FROM updates WHERE stored = 'file' AND {concerned}", values
            )
            self._database.change(
                f"UPDATE updates SET stored = 'dropped', payload = NULL WHERE {concerned}", values
            )
        return [row[0] for row in files]

    def forget(self, *, most: int) -> int:
        """Prune what is old, and below the horizon."""
        with self._database.transaction():
            old = self._database.rows(
                "SELECT u.accept_seq, u.device FROM updates u, office o"
                " WHERE u.accept_seq <= (SELECT MAX(accept_seq) FROM updates) - ?"
                " AND u.stored = 'dropped'"
                " AND (u.base_epoch, u.base_number) < (o.horizon_epoch, o.horizon_number)"
                " ORDER BY u.accept_seq LIMIT ?",
                (most, _FORGET_AT_ONCE),
            )
            for accept_seq, device in old:
                self._database.change("DELETE FROM updates WHERE accept_seq = ?", (accept_seq,))
                self._database.change(
                    "UPDATE devices SET forgotten = forgotten + 1 WHERE device = ?", (device,)
                )
            self._database.change("UPDATE office SET forgotten = forgotten + ?", (len(old),))
            self._database.change(
                "DELETE FROM refusals WHERE sequence <= (SELECT MAX(sequence) FROM refusals) - ?", (most,)
            )
            self._database.change(
                "DELETE FROM versions WHERE number <= (SELECT MAX(number) FROM versions) - ?"
                " AND number < (SELECT MIN(anchor, horizon_number) FROM office)",
                (most,),
            )
        return len(old)

    def _office_after(self, statement: str) -> Office:
        with self._database.transaction():
            self._database.change(statement)
            return self.office()

    def _change_version(self, number: int, assignment: str, value: Any) -> None:
        changed, _ = self._database.change(
            f"UPDATE versions SET {assignment} WHERE number = ?", (value, number)
        )
        if not changed:
            raise StorageError(f"there is no version {number}")


def _version(row: tuple[Any, ...]) -> VersionRecord:
    (number, epoch, digest, published_sha256, rules, through_seq, updates, closed_by, term, *rest) = row
    metrics, published, closed_at, uptime_s = rest
    return VersionRecord(
        epoch=epoch,
        number=number,
        digest=digest,
        published_sha256=published_sha256,
        rules=rules,
        through_seq=through_seq,
        updates=updates,
        closed_by=closed_by,
        term=term,
        metrics=json.loads(metrics),
        published=bool(published),
        closed_at=closed_at,
        uptime_s=uptime_s,
    )
