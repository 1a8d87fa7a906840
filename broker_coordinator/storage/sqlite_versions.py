"""The store's verbs on the office, versions, rules and retention, on sqlite."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from broker_coordinator.storage.records import Office, VersionRecord
from broker_coordinator.storage.sqlite_database import Database
from fl_protocol.errors import StorageError
from fl_protocol.version import DIGEST_BYTES, VersionId

__all__ = ["LEAP", "SqliteVersions"]

_OFFICE = (
    "epoch, term, counter, command_sequence, horizon_epoch, horizon_number, witnessed, anchor, forgotten,"
    " uptime_s"
)
_COLUMNS = (
    "number, epoch, digest, published_sha256, rules, through_seq, updates, closed_by, term, metrics,"
    " published, closed_at, uptime_s"
)
_FORGET_AT_ONCE = 1_000
_TERM_LEAP = 1 << 20
"""More terms than any coordinator begins between a backup and the day it is restored."""
LEAP = f"UPDATE office SET term = term + {_TERM_LEAP}"
"""For copies of the store: what goes on from one has terms above all that the original will reach."""


class SqliteVersions:
    """See ``broker_coordinator.storage.store.Store``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def office(self) -> Office:
        """The coordinator's own small state."""
        row = self._database.row(f"SELECT {_OFFICE} FROM office")
        if row is None:
            raise StorageError(f"{self._database.path} holds no office")
        (epoch, term, counter, sequence, horizon_epoch, horizon_number, witnessed, *rest) = row
        anchor, forgotten, uptime_s = rest
        return Office(
            epoch=epoch,
            term=term,
            counter=counter,
            command_sequence=sequence,
            horizon=(horizon_epoch, horizon_number),
            witnessed=witnessed,
            anchor=anchor,
            forgotten=forgotten,
            uptime_s=uptime_s,
        )

    def take_office(self) -> Office:
        """Begin a new term."""
        return self._office_after("UPDATE office SET term = term + 1", purpose="coordinator.office")

    def open_epoch(self) -> Office:
        """Begin a higher epoch."""
        return self._office_after(
            f"UPDATE office SET epoch = MAX(epoch, witnessed) + 1, witnessed = 0, term = term + {_TERM_LEAP}",
            purpose="coordinator.epoch",
        )

    def next_counter(self) -> int:
        """A new manifest counter."""
        change = "UPDATE office SET counter = counter + 1"
        return self._office_after(change, purpose="coordinator.counter").counter

    def next_command_sequence(self) -> int:
        """A new command number."""
        change = "UPDATE office SET command_sequence = command_sequence + 1"
        return self._office_after(change, purpose="coordinator.command").command_sequence

    def raise_horizon(self, to: tuple[int, int]) -> None:
        """Move the horizon up."""
        self._database.change(
            "UPDATE office SET horizon_epoch = ?, horizon_number = ?"
            " WHERE (horizon_epoch, horizon_number) < (?, ?)",
            (*to, *to),
        )

    def roll_back(self, epoch: int) -> None:
        """Enter the rolled-back state."""
        self._database.change("UPDATE office SET witnessed = MAX(witnessed, ?)", (epoch,))

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
            self._database.change(
                "UPDATE runtimes SET folded = folded + waiting.count FROM (SELECT runtime AS name, COUNT(*)"
                " AS count FROM updates WHERE state = 'waiting' AND accept_seq <= ? GROUP BY runtime)"
                " AS waiting WHERE runtimes.runtime = waiting.name",
                (version.through_seq,),
            )
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
        with self._database.transaction("coordinator.evaluation"):
            self._change_version(number, "metrics = ?", json.dumps(metrics))

    def mark_published(self, number: int) -> None:
        """Record that a version went out."""
        with self._database.transaction("coordinator.published"):
            self._change_version(number, "published = ?", 1)

    def put_rules(self, text: str) -> str:
        """Keep fold rules under their hash."""
        name = hashlib.sha256(text.encode()).hexdigest()
        with self._database.transaction("coordinator.rules"):
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

    def drop_payloads(self, through: int, *, spare: int = 0) -> Sequence[bytes]:
        """Drop payloads up to a version, which becomes the anchor."""
        version = self.version(through)
        if version is None:
            raise StorageError(f"there is no version {through}: its payloads cannot be dropped")
        files: list[bytes] = []
        with self._database.transaction("coordinator.retention"):
            self._database.change("UPDATE office SET anchor = ? WHERE anchor < ?", (through, through))
            # One after the other: joined by OR they go through every row that was dropped before.
            for concerned, bound in (
                ("version <= ?", through - spare),
                ("state = 'quarantined' AND accept_seq <= ?", version.through_seq),
            ):
                kept = f"stored <> 'dropped' AND {concerned}"
                rows = self._database.rows(
                    f"SELECT update_id FROM updates WHERE {kept} AND stored = 'file'", (bound,)
                )
                files += [row[0] for row in rows]
                self._database.change(
                    f"UPDATE updates SET stored = 'dropped', payload = NULL WHERE {kept}", (bound,)
                )
        return files

    def forget(self, *, most: int) -> int:
        """Prune what is old, and below the horizon."""
        forgotten = 0
        while count := self._forget_updates(most):
            forgotten += count
        with self._database.transaction("coordinator.forget_refusals"):
            self._database.change(
                "DELETE FROM refusals WHERE sequence <= (SELECT MAX(sequence) FROM refusals) - ?", (most,)
            )
            self._database.change(
                "DELETE FROM versions WHERE number <= (SELECT MAX(number) FROM versions) - ?"
                " AND number < (SELECT MIN(anchor, horizon_number) FROM office)",
                (most,),
            )
        return forgotten

    def _forget_updates(self, most: int) -> int:
        """A part of the rows that may go, and their place in the counts; how many, 0 at the end."""
        (newest,) = self._database.rows("SELECT COALESCE(MAX(accept_seq), 0) FROM updates")[0]
        # The bounds are given as numbers: joined with the office, the planner goes through all dropped rows.
        old = self._database.rows(
            "SELECT accept_seq, device FROM updates WHERE accept_seq <= ? AND stored = 'dropped'"
            " AND (base_epoch, base_number) < (?, ?) ORDER BY accept_seq LIMIT ?",
            (newest - most, *self.office().horizon, _FORGET_AT_ONCE),
        )
        if not old:
            return 0
        with self._database.transaction("coordinator.forget"):
            for accept_seq, _ in old:
                self._database.change("DELETE FROM updates WHERE accept_seq = ?", (accept_seq,))
            for device, count in Counter(device for _, device in old).items():
                self._database.change(
                    "UPDATE devices SET forgotten = forgotten + ? WHERE device = ?", (count, device)
                )
            self._database.change("UPDATE office SET forgotten = forgotten + ?", (len(old),))
        return len(old)

    def _office_after(self, statement: str, *, purpose: str) -> Office:
        with self._database.transaction(purpose):
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
