"""The file of one outbox or of several: its tables, and the steps from each older format.

WAL mode with ``synchronous=FULL``: what is committed is on the disk.
"""

import os
import sqlite3
from pathlib import Path

from edge_agent.device_state import SCHEMA as DEVICE_STATES
from edge_agent.sqlite_file import StorageErrors
from fl_io.crash import crash_point
from fl_protocol.errors import StorageError

__all__ = ["FORMAT", "IN_MEMORY", "OutboxFile"]

IN_MEMORY = ":memory:"
FORMAT = 3
_APPLICATION_ID = 0x4C696368
_SCHEMA = """
CREATE TABLE outbox (
    update_id BLOB PRIMARY KEY, sequence INTEGER NOT NULL UNIQUE, header BLOB NOT NULL,
    epoch INTEGER NOT NULL, number INTEGER NOT NULL, digest BLOB NOT NULL,
    size INTEGER NOT NULL, age_s REAL NOT NULL, payload BLOB NOT NULL);
CREATE TABLE ledger (
    sequence INTEGER PRIMARY KEY, update_id BLOB NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE totals (outcome TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE bases (
    epoch INTEGER, number INTEGER, digest BLOB, sequence INTEGER NOT NULL,
    PRIMARY KEY (epoch, number, digest)) WITHOUT ROWID;
CREATE TABLE facts (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
_BOXES = """
ALTER TABLE outbox RENAME TO old_outbox;
CREATE TABLE outbox (
    update_id BLOB PRIMARY KEY, sequence INTEGER NOT NULL, header BLOB NOT NULL,
    epoch INTEGER NOT NULL, number INTEGER NOT NULL, digest BLOB NOT NULL,
    size INTEGER NOT NULL, age_s REAL NOT NULL, payload BLOB NOT NULL, box INTEGER NOT NULL DEFAULT 0,
    UNIQUE (box, sequence));
INSERT INTO outbox SELECT *, 0 FROM old_outbox;
DROP TABLE old_outbox;
ALTER TABLE ledger RENAME TO old_ledger;
CREATE TABLE ledger (
    box INTEGER NOT NULL DEFAULT 0, sequence INTEGER NOT NULL, update_id BLOB NOT NULL,
    outcome TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (box, sequence)) WITHOUT ROWID;
INSERT INTO ledger SELECT 0, * FROM old_ledger;
DROP TABLE old_ledger;
ALTER TABLE totals RENAME TO old_totals;
CREATE TABLE totals (
    box INTEGER NOT NULL DEFAULT 0, outcome TEXT NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (box, outcome)) WITHOUT ROWID;
INSERT INTO totals SELECT 0, * FROM old_totals;
DROP TABLE old_totals;
ALTER TABLE bases RENAME TO old_bases;
CREATE TABLE bases (
    box INTEGER NOT NULL DEFAULT 0, epoch INTEGER, number INTEGER, digest BLOB, sequence INTEGER NOT NULL,
    PRIMARY KEY (box, epoch, number, digest)) WITHOUT ROWID;
INSERT INTO bases SELECT 0, * FROM old_bases;
DROP TABLE old_bases;
ALTER TABLE facts RENAME TO old_facts;
CREATE TABLE facts (
    box INTEGER NOT NULL DEFAULT 0, key TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (box, key)) WITHOUT ROWID;
INSERT INTO facts SELECT 0, * FROM old_facts;
DROP TABLE old_facts;
ALTER TABLE device_states RENAME TO old_device_states;
CREATE TABLE device_states (
    box INTEGER NOT NULL DEFAULT 0, artifact BLOB NOT NULL, sequence INTEGER NOT NULL,
    content BLOB NOT NULL, PRIMARY KEY (box, artifact));
INSERT INTO device_states SELECT 0, * FROM old_device_states;
DROP TABLE old_device_states;
"""
_STEPS = (_SCHEMA, DEVICE_STATES, _BOXES)
"""What makes a file of each format from the one before."""


class OutboxFile:
    """The file of one outbox or of several; ``:memory:`` is a file that ends with its process.

    Raises:
        StorageError: it cannot be opened, is damaged, or was written by a newer agent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        hint = "a full or read-only disk; a damaged file is set aside when the agent opens it next"
        self.translated = StorageErrors(f"the outbox {path}", hint)
        """Turns what sqlite raises into StorageError."""
        with self.translated:
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        try:
            with self.translated:
                self._prepare()
        except StorageError:
            self.db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def _prepare(self) -> None:
        (tables,) = self.db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (application,) = self.db.execute("PRAGMA application_id").fetchone()
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if tables and application != _APPLICATION_ID:
            raise sqlite3.DatabaseError("it is a database of another program")
        if version > FORMAT:
            raise StorageError(
                f"the outbox {self.path} was written by a newer agent (format {version})",
                hint="install that version again, or give this agent a state folder of its own",
            )
        if str(self.path) != IN_MEMORY:
            os.chmod(self.path, 0o640)
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "cache_size=-256",
            "journal_size_limit=1048576",
            # Debian's sqlite writes zeros over what is deleted: every payload would be written twice.
            "secure_delete=FAST",
        ):
            self.db.execute(f"PRAGMA {pragma}")
        # Whatever fails this check would fail later in the middle of a participation.
        fault = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if fault != "ok":
            raise sqlite3.DatabaseError(fault)
        if version < FORMAT:
            marks = f"PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={FORMAT};"
            self.db.executescript(f"BEGIN;{''.join(_STEPS[version:])}{marks}COMMIT;")
            crash_point("agent.schema")
