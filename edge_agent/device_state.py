"""Device states: the personal tensors of this device, kept in the outbox's file beside what they go with.

A training moves the shared weights and the personal ones together, so the update and the device state that
it leaves are of one commit. States are kept by the artifact they belong to, the newest few. An artifact that
has none yet is offered the newest: it takes that over where names and shapes agree, and starts anew where
they do not (``edge_agent.personal``).
"""

import sqlite3
from dataclasses import dataclass

__all__ = [
    "KEPT",
    "MAX_DEVICE_STATE_BYTES",
    "SCHEMA",
    "DeviceState",
    "find_state",
    "keep_state",
    "newest_size",
]

KEPT = 2
"""The current artifact's and the one before, as in the cache."""
MAX_DEVICE_STATE_BYTES = 32 << 20
SCHEMA = """
CREATE TABLE device_states (
    artifact BLOB PRIMARY KEY, sequence INTEGER NOT NULL, content BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """``content`` (sealed, see ``edge_agent.tensor_record``) under the digest of the artifact it was trained
    with, 32 bytes."""

    artifact: bytes
    content: bytes


def keep_state(db: sqlite3.Connection, state: DeviceState, sequence: int, *, box: int = 0) -> None:
    """Keep a state in place of the artifact's last one, within the caller's commit. ``sequence`` grows."""
    db.execute(
        "INSERT OR REPLACE INTO device_states VALUES (?, ?, ?, ?)",
        (box, state.artifact, sequence, state.content),
    )
    db.execute(
        "DELETE FROM device_states WHERE box = ?1 AND artifact NOT IN"
        " (SELECT artifact FROM device_states WHERE box = ?1 ORDER BY sequence DESC LIMIT ?2)",
        (box, KEPT),
    )


def find_state(db: sqlite3.Connection, artifact: bytes, *, box: int = 0) -> DeviceState | None:
    """The state of an artifact, or else the newest."""
    row = db.execute(
        "SELECT artifact, content FROM device_states WHERE box = ?"
        " ORDER BY artifact = ? DESC, sequence DESC LIMIT 1",
        (box, artifact),
    ).fetchone()
    return DeviceState(artifact=bytes(row[0]), content=bytes(row[1])) if row else None


def newest_size(db: sqlite3.Connection, *, box: int = 0) -> int:
    """The bytes of the newest state; 0 where there is none."""
    row = db.execute(
        "SELECT length(content) FROM device_states WHERE box = ? ORDER BY sequence DESC LIMIT 1", (box,)
    ).fetchone()
    return int(row[0]) if row else 0
