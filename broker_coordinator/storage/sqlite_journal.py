"""The journal's verbs on sqlite."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from broker_coordinator.storage.records import (
    AcceptedUpdate,
    DeviceEvaluation,
    JournalCounts,
    NewUpdate,
    Outcome,
    RuntimeCounts,
)
from broker_coordinator.storage.sqlite_database import Database
from broker_coordinator.storage.uploads import PayloadFiles
from fl_protocol.errors import StorageError
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId

__all__ = ["SqliteJournal"]

_BATCH = 64
"""Rows in memory at a time: with payloads of up to 64 KiB, 4 MiB."""
_MOST_RUNTIMES = 32
_OTHER_RUNTIMES = "other"
"""What devices call their runtimes is theirs: beyond so many names they are counted together."""
_BEFORE = "before."
_COLUMNS = (
    "accept_seq, update_id, device, hash, header, base_epoch, base_number, payload, weight, scale, norm,"
    " staleness, state, version, reason"
)
_WITHOUT_PAYLOAD = _COLUMNS.replace("payload", "NULL")


class SqliteJournal:
    """See ``broker_coordinator.storage.store.Journal``."""

    def __init__(self, database: Database, files: PayloadFiles) -> None:
        self._database = database
        self._files = files

    def outcome(self, update_id: bytes) -> Outcome | None:
        """The terminal word on an update id."""
        row = self._database.row(
            "SELECT hash, 'done', '' FROM updates WHERE update_id = ?1 UNION ALL"
            " SELECT hash, 'refused', reason FROM refusals WHERE update_id = ?1",
            (update_id,),
        )
        return Outcome(hash=row[0], state=row[1], reason=row[2]) if row is not None else None

    def counted(self, device: str, base: VersionId) -> bool:
        """Whether the device counted for that base."""
        found = self._database.row(
            "SELECT 1 FROM updates WHERE device = ? AND base_epoch = ? AND base_number = ?",
            (device, base.epoch, base.number),
        )
        return found is not None

    def accept(self, update: NewUpdate) -> int:
        """Append a row."""
        return self.accept_all([update])[0]

    def accept_all(self, updates: Sequence[NewUpdate]) -> Sequence[int]:
        """Append rows."""
        with self._database.transaction():
            named = Counter(update.runtime for update in updates)
            names = {name: self._count_runtime(name, count) for name, count in named.items()}
            last = self._database.row("SELECT seq FROM sqlite_sequence WHERE name = 'updates'")
            first = (last[0] if last is not None else 0) + 1
            self._database.change_all(
                "INSERT INTO updates (accept_seq, update_id, device, hash, header, base_epoch, base_number,"
                " stored, size, payload, weight, scale, norm, staleness, runtime, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'waiting')",
                [
                    (
                        accept_seq,
                        update.update_id,
                        update.device,
                        update.hash,
                        update.header,
                        update.base.epoch,
                        update.base.number,
                        "file" if update.payload is None else "row",
                        update.size,
                        update.payload,
                        update.weight,
                        update.scale,
                        update.norm,
                        update.staleness,
                        names[update.runtime],
                    )
                    for accept_seq, update in enumerate(updates, first)
                ],
            )
            self._database.change_all(
                "DELETE FROM uploads WHERE update_id = ?", [(update.update_id,) for update in updates]
            )
        return range(first, first + len(updates))

    def refuse(self, update_id: bytes, *, hash: bytes, device: str, base: VersionId, reason: str) -> None:
        """Remember a refusal; the first one stays."""
        with self._database.transaction():
            self._database.change(
                "INSERT OR IGNORE INTO refusals (update_id, hash, device, base_epoch, base_number, reason)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (update_id, hash, device, base.epoch, base.number, reason),
            )
            self._end_upload(update_id)

    def quarantine(self, accept_seq: int, reason: str) -> None:
        """Set a waiting update aside."""
        changed, _ = self._database.change(
            "UPDATE updates SET state = 'quarantined', reason = ? WHERE accept_seq = ? AND state = 'waiting'",
            (reason[:256], accept_seq),
        )
        if not changed:
            raise StorageError(f"update {accept_seq} does not wait: it cannot be quarantined")

    def quarantined_after(self, accept_seq: int) -> Sequence[int]:
        """Those set aside since."""
        rows = self._database.rows(
            "SELECT accept_seq FROM updates WHERE accept_seq > ? AND state = 'quarantined'"
            " ORDER BY accept_seq",
            (accept_seq,),
        )
        return [seq for (seq,) in rows]

    def waiting(self) -> Iterator[AcceptedUpdate]:
        """Accepted and not yet folded."""
        return self._by_sequence("state = 'waiting'", ())

    def folded_into(self, number: int) -> Iterator[AcceptedUpdate]:
        """The updates of a version."""
        return self._by_sequence("version = ?", (number,))

    def counts(self) -> JournalCounts:
        """How many rows are in which state."""
        states = dict(self._database.rows("SELECT state, COUNT(*) FROM updates GROUP BY state"))
        refused = self._database.row("SELECT COUNT(*) FROM refusals")
        return JournalCounts(**states, refused=refused[0] if refused else 0)

    def runtimes(self) -> Mapping[str, RuntimeCounts]:
        """Counts by runtime."""
        rows = self._database.rows("SELECT runtime, accepted, folded FROM runtimes ORDER BY runtime")
        return {name: RuntimeCounts(accepted=accepted, folded=folded) for name, accepted, folded in rows}

    def rows(self) -> Iterator[AcceptedUpdate]:
        """Every row, without its payload."""
        return self._by_sequence("1", (), columns=_WITHOUT_PAYLOAD)

    def payload(self, update: AcceptedUpdate) -> bytes | None:
        """The payload of a row, or of its file."""
        if update.payload is not None:
            return update.payload
        row = self._database.row(
            "SELECT stored, size, payload FROM updates WHERE accept_seq = ?", (update.accept_seq,)
        )
        if row is None or row[0] == "dropped":
            return None
        stored, size, payload = row
        return payload if stored == "row" else self._files.read(update.update_id, size)

    def payload_files(self) -> Iterator[bytes]:
        """The ids of the updates whose payload is a file."""
        rows = self._database.rows("SELECT update_id FROM updates WHERE stored = 'file'")
        return (row[0] for row in rows)

    def last_folded(self, device: str, after: int, through: int) -> AcceptedUpdate | None:
        """The newest folded update of a device."""
        row = self._database.row(
            f"SELECT {_COLUMNS} FROM updates WHERE device = ? AND version > ? AND version <= ?"
            " AND stored <> 'dropped' ORDER BY accept_seq DESC LIMIT 1",
            (device, after, through),
        )
        return _accepted(row) if row is not None else None

    def last_words(self, version: int, through: int) -> Iterator[AcceptedUpdate]:
        """The newest folded updates of their devices, among those of a version."""
        return self._by_sequence(
            "version = ? AND stored <> 'dropped' AND NOT EXISTS (SELECT 1 FROM updates AS newer"
            " WHERE newer.device = updates.device AND newer.accept_seq > updates.accept_seq"
            " AND newer.version <= ? AND newer.stored <> 'dropped')",
            (version, through),
        )

    def devices_folded(self, after: int, through: int) -> int:
        """How many devices have folded updates."""
        row = self._database.row(
            "SELECT COUNT(DISTINCT device) FROM updates WHERE version > ? AND version <= ?"
            " AND stored <> 'dropped'",
            (after, through),
        )
        return row[0] if row is not None else 0

    def device_evaluation(self, number: int) -> DeviceEvaluation:
        """Sums over the reports of one base version."""
        rows = self._by_sequence(
            "base_number = ? AND state <> 'quarantined'", (number,), columns=_WITHOUT_PAYLOAD
        )
        sums: dict[str, float] = {}
        devices = 0
        for row in rows:
            header, _ = UpdateHeader.unpack(row.header)
            before = {
                name.removeprefix(_BEFORE): value
                for name, value in header.metrics.items()
                if name.startswith(_BEFORE)
            }
            devices += bool(before)
            for name, value in before.items():
                sums[name] = sums.get(name, 0.0) + value
        return DeviceEvaluation(devices=devices, sums=sums)

    def _count_runtime(self, name: str, updates: int) -> str:
        """Count updates for the runtime of that name; the name they are counted under."""
        count = "UPDATE runtimes SET accepted = accepted + ? WHERE runtime = ?"
        changed, _ = self._database.change(count, (updates, name))
        if changed:
            return name
        (names,) = self._database.rows("SELECT COUNT(*) FROM runtimes")[0]
        if names >= _MOST_RUNTIMES:
            name = _OTHER_RUNTIMES
        self._database.change("INSERT OR IGNORE INTO runtimes (runtime) VALUES (?)", (name,))
        self._database.change(count, (updates, name))
        return name

    def _end_upload(self, update_id: bytes) -> None:
        self._database.change("DELETE FROM uploads WHERE update_id = ?", (update_id,))

    def _by_sequence(
        self, condition: str, values: tuple[Any, ...], *, columns: str = _COLUMNS
    ) -> Iterator[AcceptedUpdate]:
        """Rows a batch at a time, so that the caller may write between two of them."""
        after = 0
        while True:
            rows = self._database.rows(
                f"SELECT {columns} FROM updates WHERE {condition} AND accept_seq > ?"
                f" ORDER BY accept_seq LIMIT {_BATCH}",
                (*values, after),
            )
            yield from map(_accepted, rows)
            if len(rows) < _BATCH:
                return
            after = rows[-1][0]


def _accepted(row: tuple[Any, ...]) -> AcceptedUpdate:
    (seq, update_id, device, digest, header, epoch, number, payload, *rest) = row
    (weight, scale, norm, staleness, state, version, reason) = rest
    return AcceptedUpdate(
        accept_seq=seq,
        update_id=update_id,
        device=device,
        hash=digest,
        header=header,
        base=(epoch, number),
        payload=payload,
        weight=weight,
        scale=scale,
        norm=norm,
        staleness=staleness,
        state=state,
        version=version,
        reason=reason,
    )
