"""What is in an outbox, counted: by its own agent, or by another program while the agent runs."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from edge_agent.device_state import newest_size
from edge_agent.outbox_file import FORMAT
from edge_agent.sqlite_file import storage_errors

__all__ = ["CODEC_STATE", "OutboxCounts", "counted", "read_counts", "residual_bytes"]

CODEC_STATE = "codec_state"
"""The fact that is what the newest update left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxCounts:
    """Updates by outcome since the file was made; entries that wait now, and their bytes; the bytes of the
    newest device state, and of what the newest update left out."""

    created: int = 0
    done: int = 0
    refused: int = 0
    expired: int = 0
    destroyed: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    personal_bytes: int = 0
    residual_bytes: int = 0


def read_counts(path: Path) -> OutboxCounts:
    """The counts of an outbox that another process may be using, from a read-only connection.

    Raises:
        StorageError: no such file, or it cannot be read.
    """
    with storage_errors(f"the outbox {path}"):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        try:
            return counted(db)
        finally:
            db.close()


def counted(db: sqlite3.Connection, box: int = 0) -> OutboxCounts:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    where = f" WHERE box = {box}" if version >= FORMAT else ""
    totals = dict(db.execute(f"SELECT outcome, count FROM totals{where}"))
    waiting, size = db.execute(f"SELECT count(*), coalesce(sum(size), 0) FROM outbox{where}").fetchone()
    personal = newest_size(db, box=box) if version >= FORMAT else 0
    return OutboxCounts(
        **totals,
        waiting=waiting,
        waiting_bytes=size,
        personal_bytes=personal,
        residual_bytes=residual_bytes(db, where),
    )


def residual_bytes(db: sqlite3.Connection, where: str) -> int:
    """What the codec's state takes, without reading it; ``where`` names the box."""
    state = f"{where} AND key = ?" if where else " WHERE key = ?"
    row = db.execute(f"SELECT length(value) FROM facts{state}", (CODEC_STATE,)).fetchone()
    return row[0] if row else 0
