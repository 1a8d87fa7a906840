"""The store on stdlib sqlite3: one file, ``coordinator.db``, and folders for what is too large for a row."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from broker_coordinator.storage.records import Upload
from broker_coordinator.storage.sqlite_database import Database
from broker_coordinator.storage.sqlite_fleet import SqliteFleet
from broker_coordinator.storage.sqlite_journal import SqliteJournal
from broker_coordinator.storage.sqlite_versions import LEAP, SqliteVersions
from broker_coordinator.storage.uploads import PayloadFiles
from fl_io.disk import DISK, Disk, make_folder
from fl_protocol.errors import StorageError
from fl_protocol.ranges import ByteRanges

__all__ = ["SqliteStore"]

_COLUMNS = "update_id, device, header, hash, ranges"


class SqliteStore(SqliteJournal, SqliteVersions, SqliteFleet):
    """See ``broker_coordinator.storage.store.Store``; use ``open``."""

    def __init__(self, database: Database, files: PayloadFiles) -> None:
        SqliteJournal.__init__(self, database, files)
        self._database = database

    @classmethod
    def open(
        cls, folder: Path, *, read_only: bool = False, durable: bool = True, disk: Disk = DISK
    ) -> "SqliteStore":
        """Open the state in ``folder``, creating it unless ``read_only``; raises what ``Database`` does.

        Whoever opens it for writing holds the lock on the folder.
        """
        if not read_only:
            make_folder(folder, purpose="coordinator.folder", disk=disk)
        return cls(Database(folder, read_only=read_only, durable=durable), PayloadFiles(folder, disk=disk))

    @property
    def folder(self) -> Path:
        """The state folder."""
        return self._database.path.parent

    def transaction(self, purpose: str = "") -> AbstractContextManager[None]:
        """Commit the verbs inside together."""
        return self._database.transaction(purpose)

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the database while others write, its term beyond our reach."""
        self._database.copy_to(path, LEAP)

    def close(self) -> None:
        """Release the files."""
        self._database.close()

    def open_upload(self, upload: Upload) -> None:
        """Begin to gather a large payload."""
        self._database.change(
            f"INSERT OR IGNORE INTO uploads ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            (upload.update_id, upload.device, upload.header, upload.hash, _flat(upload.ranges)),
        )

    def upload(self, update_id: bytes) -> Upload | None:
        """The upload of an update id."""
        row = self._database.row(f"SELECT {_COLUMNS} FROM uploads WHERE update_id = ?", (update_id,))
        return _upload(row) if row is not None else None

    def put_range(self, update_id: bytes, start: int, end: int) -> Upload:
        """Record a durable range."""
        with self._database.transaction():
            upload = self.upload(update_id)
            if upload is None:
                raise StorageError(f"no upload of update {update_id.hex()} is under way")
            ranges = upload.ranges.add(start, end)
            self._set_ranges(update_id, ranges)
        return Upload(
            update_id=update_id, device=upload.device, header=upload.header, hash=upload.hash, ranges=ranges
        )

    def reset_upload(self, update_id: bytes) -> None:
        """Forget the ranges."""
        with self._database.transaction("coordinator.reset_upload"):
            self._set_ranges(update_id, ByteRanges())

    def close_upload(self, update_id: bytes) -> None:
        """Forget an upload."""
        self._end_upload(update_id)

    def uploads(self) -> Sequence[Upload]:
        """All uploads under way."""
        return [
            _upload(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM uploads ORDER BY update_id")
        ]

    def _set_ranges(self, update_id: bytes, ranges: ByteRanges) -> None:
        self._database.change("UPDATE uploads SET ranges = ? WHERE update_id = ?", (_flat(ranges), update_id))


def _flat(ranges: ByteRanges) -> str:
    return json.dumps([list(pair) for pair in ranges])


def _upload(row: tuple[Any, ...]) -> Upload:
    update_id, device, header, digest, ranges = row
    return Upload(
        update_id=update_id,
        device=device,
        header=header,
        hash=digest,
        ranges=ByteRanges.of((start, end) for start, end in json.loads(ranges)),
    )
