"""Rescue: what can still be read of a damaged sample store, row by row, goes into a fresh one.

A page that a card has spoilt takes the rows on it along, and a page of an index all that is found by it.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

__all__ = ["checksum", "is_sound", "rescue"]

_COLUMNS = "sample_id, size, x, y, checksum"


def checksum(x: bytes, y: bytes) -> int:
    """CRC-32 of a sample's bytes."""
    return zlib.crc32(y, zlib.crc32(x))


def is_sound(path: Path) -> bool:
    """Whether sqlite finds nothing wrong with any page of a database; reads all of it."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30.0)) as db:
            return bool(db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # busy, or the disk around it
            raise
        return False


def rescue(
    damaged: Path, fresh: sqlite3.Connection, *, most: int, is_held_out: Callable[[bytes], bool]
) -> int:
    """Copy the newest ``most`` samples that are whole into a fresh, empty store; how many there were.

    Each keeps its id, and so the part that it belongs to. One commit.

    Raises:
        sqlite3.Error: the fresh store cannot be written.
    """
    kept = {False: 0, True: 0}
    total = 0
    with contextlib.closing(sqlite3.connect(damaged, timeout=30.0)) as source:
        try:
            form, evicted, lost = source.execute("SELECT form, evicted, damaged FROM totals").fetchone()
            (newest,) = source.execute("SELECT seq FROM sqlite_sequence WHERE name = 'samples'").fetchone()
        except (sqlite3.Error, TypeError, ValueError):
            return 0  # without their form samples are mere bytes
        fresh.execute("BEGIN IMMEDIATE")
        for sequence in range(max(newest - most, 0) + 1, newest + 1):
            row = _whole(source, sequence)
            if row is None:
                continue
            sample_id, size, x, y, check = row
            held_out = is_held_out(sample_id)
            with contextlib.suppress(sqlite3.IntegrityError):  # an id that the damage has written twice
                fresh.execute(
                    "INSERT INTO samples (sequence, sample_id, held_out, size, x, y, checksum)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (sequence, sample_id, held_out, size, x, y, check),
                )
                kept[held_out] += 1
                total += size
        fresh.execute(
            "UPDATE totals SET form = ?, training = ?, held_out = ?, bytes = ?, evicted = ?, damaged = ?",
            (form, kept[False], kept[True], total, evicted, lost),
        )
        fresh.execute("COMMIT")
    return kept[False] + kept[True]


def _whole(source: sqlite3.Connection, sequence: int) -> tuple[bytes, int, bytes, bytes, int | None] | None:
    """A row by its number, if it can be read and is what was added."""
    try:
        row = source.execute(f"SELECT {_COLUMNS} FROM samples WHERE sequence = ?", (sequence,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    if row is None:
        return None
    sample_id, size, x, y, check = row
    if not (isinstance(sample_id, bytes) and isinstance(x, bytes) and isinstance(y, bytes)):
        return None
    if len(x) + len(y) != size or (check is not None and check != checksum(x, y)):
        return None
    return sample_id, size, x, y, check
