"""One sqlite file: opened with checks, written in explicit transactions, its errors made ours.

WAL with ``synchronous=FULL``: a commit is on the disk when it returns. A file that is damaged is set
aside under another name and reported; nothing new is put in its place.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from broker_coordinator.storage.schema import MIGRATIONS
from fl_io.crash import crash_point
from fl_protocol.errors import StorageError

__all__ = ["DATABASE_NAME", "Database"]

DATABASE_NAME = "coordinator.db"
BUSY_TIMEOUT_S = 10.0
CACHE_KIB = 16 << 10
CHECKPOINT_PAGES = 4000
_COMPANIONS = ("-wal", "-shm")
_RESTORE = "restore a backup made by `lichen backup`: copy its files into the empty state folder"


class Database:
    """A connection to ``coordinator.db`` in a state folder.

    ``read_only`` opens an existing file beside its writer; one of an older release is not changed, but read
    from a temporary copy that has today's tables. ``durable`` False leaves the fsyncs out: for
    simulated fleets, whose state nobody needs after a power cut.

    Raises:
        StorageError: the file is damaged (set aside as ``coordinator.db.damaged-N``), of a newer version
            of Lichen, missing although the folder holds the rest of a coordinator's state, or unreadable.
    """

    def __init__(self, folder: Path, *, read_only: bool = False, durable: bool = True) -> None:
        self.path = folder / DATABASE_NAME
        self._depth = 0
        self._begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        exists = self.path.exists()
        if not exists:
            _refuse_to_begin_anew(self.path, read_only=read_only)
        try:
            self._connection = _connect(self.path, read_only=read_only)
            if not read_only:
                self._prepare(durable=durable, check=exists)
            self._refuse_newer()
            if read_only:
                self._connection = _as_of_today(self._connection)
        except sqlite3.DatabaseError as error:
            raise self._unusable(error, read_only=read_only) from None

    @contextlib.contextmanager
    def transaction(self, purpose: str = "") -> Iterator[None]:
        """Commit what happens inside as one; nested ones join the outermost, whose ``purpose`` begins the
        names of the crash points before and after the commit.

        Raises:
            StorageError: the commit failed; everything inside is undone.
        """
        if self._depth:
            yield
            return
        self.rows(self._begin)
        self._depth = 1
        try:
            yield
            crash_point(f"{purpose}.commit")
            self.rows("COMMIT")
            crash_point(f"{purpose}.committed")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            raise
        finally:
            self._depth = 0

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows; raises StorageError."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def row(self, statement: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row, if any; raises StorageError."""
        found = self.rows(statement, values)
        return found[0] if found else None

    def change(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, int]:
        """Run a change in a transaction: (rows changed, id of the last row inserted)."""
        if not self._depth:
            with self.transaction():
                return self.change(statement, values)
        try:
            cursor = self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        return cursor.rowcount, cursor.lastrowid or 0

    def change_all(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a change for each of ``rows`` in a transaction; raises StorageError."""
        with self.transaction():
            try:
                self._connection.executemany(statement, rows)
            except sqlite3.Error as error:
                raise self._failure(error) from error

    def copy_to(self, path: Path, change: str) -> None:
        """A consistent copy while others write, changed by a statement; raises StorageError."""
        try:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as target:
                self._connection.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")
                target.execute(change)
        except sqlite3.Error as error:
            raise StorageError(f"cannot copy {self.path} to {path}: {error}") from error

    def close(self) -> None:
        """Close the connection; the last one to close folds the write-ahead log in."""
        self._connection.close()

    def _prepare(self, *, durable: bool, check: bool) -> None:
        if check:
            verdict = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != ("ok",):
                raise sqlite3.DatabaseError(str(verdict[0]))
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        self._connection.execute("PRAGMA journal_size_limit = 67108864")
        # Ids are random, so that every accepted update touches pages all over the indices: with less room,
        # and a checkpoint of its own every few commits, a fleet's updates cost three times the writing.
        self._connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        _migrate(self._connection)

    def _refuse_newer(self) -> None:
        (have,) = self._connection.execute("PRAGMA user_version").fetchone()
        if have > len(MIGRATIONS):
            self._connection.close()
            raise StorageError(
                f"{self.path} was written by a newer version of Lichen (schema {have})",
                hint="update lichen on this machine",
            )

    def _unusable(self, error: sqlite3.DatabaseError, *, read_only: bool) -> StorageError:
        with contextlib.suppress(AttributeError):
            self._connection.close()
        if isinstance(error, sqlite3.OperationalError) or read_only:
            return StorageError(f"cannot open {self.path}: {error}")
        aside = _set_aside(self.path)
        return StorageError(
            f"{self.path} is damaged ({error}); it was set aside as {aside.name}", hint=_RESTORE
        )

    def _failure(self, error: sqlite3.Error) -> StorageError:
        full = "full" in str(error)
        return StorageError(f"{self.path}: {error}", hint="free some space on this disk" if full else "")


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    mode = "ro" if read_only else "rwc"
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )


def _migrate(connection: sqlite3.Connection) -> None:
    (have,) = connection.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(MIGRATIONS[have:], have + 1):
        connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
        crash_point("coordinator.schema")


def _as_of_today(connection: sqlite3.Connection) -> sqlite3.Connection:
    """The connection, or one to a migrated copy: whoever only reads must not change what a coordinator of an
    older release may be using."""
    (have,) = connection.execute("PRAGMA user_version").fetchone()
    if have == len(MIGRATIONS):
        return connection
    # An empty name: a file of sqlite's own in its temporary folder, gone with the connection.
    copy = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    try:
        with contextlib.closing(connection):
            connection.backup(copy)
        _migrate(copy)
    except BaseException:
        copy.close()
        raise
    return copy


def _refuse_to_begin_anew(path: Path, *, read_only: bool) -> None:
    """A coordinator that lost its journal must not count updates again as if they were new."""
    if read_only:
        raise StorageError(
            f"no coordinator has run in {path.parent}",
            hint="name the state folder, or start one with `lichen coordinator run`",
        )
    rest = [*path.parent.glob(f"{path.name}.damaged-*"), *path.parent.glob("versions/*.state")]
    if rest:
        raise StorageError(
            f"{path} is missing, but {rest[0].relative_to(path.parent)} shows that there was one",
            hint=_RESTORE,
        )


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("", *_COMPANIONS):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(aside.with_name(aside.name + suffix))
            crash_point("coordinator.damaged")
    return aside
