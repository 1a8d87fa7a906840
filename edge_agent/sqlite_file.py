"""What the agent's sqlite files have in common: one commit at a time, and errors in our own words."""

import sqlite3
from collections.abc import Callable
from types import TracebackType

from fl_io.crash import crash_point
from fl_protocol.errors import StorageError

__all__ = ["Commit", "StorageErrors", "commit", "is_damage", "storage_errors"]

_DAMAGE = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BAD_SECTORS = (
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_DATA,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
)


class Commit:
    """See ``commit``. Not made of a generator: that would cost as much as a statement."""

    __slots__ = ("_db", "_end")

    def __init__(self, db: sqlite3.Connection, end: Callable[[], None]) -> None:
        self._db, self._end = db, end

    def __enter__(self) -> None:
        """Begin."""
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._end()
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def commit(db: sqlite3.Connection, *, purpose: str) -> Commit:
    """Commit what happens inside as one, or nothing of it. The lock is taken first: a transaction that reads
    before it writes is refused at once, without a wait, where another process wrote in between. ``purpose``
    begins the names of the crash points before and after the commit."""
    return Commit(db, lambda: _end(db, purpose=purpose))


def _end(db: sqlite3.Connection, *, purpose: str) -> None:
    crash_point(f"{purpose}.commit")
    db.execute("COMMIT")
    crash_point(f"{purpose}.committed")


class StorageErrors:
    """Turns what sqlite and the disk raise into StorageError, naming ``what``; may be entered again,
    also within itself."""

    __slots__ = ("_hint", "_what")

    def __init__(self, what: str, hint: str = "") -> None:
        self._what, self._hint = what, hint

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error | OSError):
            raise StorageError(f"{self._what}: {error}", hint=self._hint) from error


def storage_errors(what: str, hint: str = "") -> StorageErrors:
    """See ``StorageErrors``."""
    return StorageErrors(what, hint)


def is_damage(error: Exception) -> bool:
    """Whether the file itself is at fault, not the disk around it (full, busy, read-only, no rights).

    A bad sector under it counts: another file will lie elsewhere.
    """
    cause = error.__cause__
    code: int | None = getattr(cause, "sqlite_errorcode", None)
    if code is None:
        return type(cause) is sqlite3.DatabaseError
    return code & 0xFF in _DAMAGE or code in _BAD_SECTORS
