"""The sample store: what the app on the device gives the agent to train on.

One sqlite file that several processes use at once. A power cut may cost the last few samples (the commits
are not synced one by one, an app may add thousands), never the store.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from edge_agent.sample_count import RIGHTS_HINT
from edge_agent.sample_form import Array, SampleForm, as_stored
from edge_agent.sample_rescue import checksum, is_sound, rescue
from edge_agent.sqlite_file import commit, is_damage, storage_errors
from edge_agent.stored_samples import StoredSamples
from fl_protocol.errors import LayoutError, StorageError

__all__ = ["HELD_OUT_SHARE", "SampleStore"]

HELD_OUT_SHARE = 0.2
_ID_BYTES = 16
_NO_LABEL = as_stored([0.0][:0])
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS samples (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, sample_id BLOB NOT NULL UNIQUE,
    held_out INTEGER NOT NULL, size INTEGER NOT NULL, x BLOB NOT NULL, y BLOB NOT NULL,
    checksum INTEGER);
CREATE INDEX IF NOT EXISTS samples_by_part ON samples (held_out, sequence, size);
CREATE TABLE IF NOT EXISTS totals (
    one INTEGER PRIMARY KEY CHECK (one = 1), form TEXT NOT NULL, training INTEGER NOT NULL,
    held_out INTEGER NOT NULL, bytes INTEGER NOT NULL, evicted INTEGER NOT NULL,
    damaged INTEGER NOT NULL DEFAULT 0);
INSERT OR IGNORE INTO totals VALUES (1, '', 0, 0, 0, 0, 0);
COMMIT;
"""
_CHECKSUMS = """
BEGIN IMMEDIATE;
ALTER TABLE samples ADD COLUMN checksum INTEGER;
ALTER TABLE totals ADD COLUMN damaged INTEGER NOT NULL DEFAULT 0;
COMMIT;
"""
"""For a store that was made before there were any: its samples are taken as they are."""


class SampleStore:
    """Samples of one form, at most ``max_samples`` and ``max_bytes``; the oldest give way and are counted.

    Each sample gets a random id, and its hash decides for ever whether the sample is held out from
    training (20 %). Usable from several threads and processes. A sample that is read and is not what was
    added, because the card has spoilt it, is dropped and counted: one of them must not keep a device from
    training, nor be trained on.

    Raises:
        StorageError: from every method, if the disk refuses or the store cannot be read.
    """

    def __init__(self, path: Path | str, *, max_samples: int = 10_000, max_bytes: int = 256 << 20) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise ValueError("max_samples and max_bytes must be positive")
        self.path = Path(path)
        self.set_aside: Path | None = None
        """Where a damaged store went that was found at this path; what could be read of it is here still."""
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._opened = False
        with self._translated():
            self._db = self._open()
        self._opened = True

    def add(self, x: ArrayLike, y: ArrayLike | None = None) -> str:
        """Add one sample and return its id (hex).

        Raises:
            LayoutError: another dtype or shape than the samples before it, or not finite.
        """
        return self._insert([(as_stored(x), _NO_LABEL if y is None else as_stored(y))])[0]

    def extend(self, xs: ArrayLike, ys: ArrayLike | None = None) -> list[str]:
        """Add the rows of ``xs`` (and of ``ys``) in one commit: all of them, or none; their ids.

        Raises:
            LayoutError: as ``add``, or ``ys`` has another length.
        """
        x_rows = as_stored(xs)
        y_rows = None if ys is None else as_stored(ys)
        if x_rows.ndim == 0 or (y_rows is not None and (y_rows.ndim == 0 or len(y_rows) != len(x_rows))):
            raise LayoutError("extend takes arrays of rows, one y for each x")
        labels = [_NO_LABEL] * len(x_rows) if y_rows is None else list(y_rows)
        return self._insert([(np.asarray(x), np.asarray(y)) for x, y in zip(x_rows, labels, strict=True)])

    def delete(self, sample_id: str) -> bool:
        """Forget a sample; ``False`` if it is not (or no longer) here."""
        with self._commit() as db:
            row = db.execute(
                "DELETE FROM samples WHERE sample_id = ? RETURNING held_out, size",
                (bytes.fromhex(sample_id),),
            ).fetchone()
            if row is not None:
                _count(db, held_out=row[0], size=row[1], sign=-1)
        return row is not None

    def __len__(self) -> int:
        return self._total("training") + self._total("held_out")

    @property
    def evicted(self) -> int:
        """Samples that gave way to newer ones since the store was made."""
        return self._total("evicted")

    @property
    def damaged(self) -> int:
        """Samples that were dropped because they were not what had been added."""
        return self._total("damaged")

    @property
    def form(self) -> SampleForm | None:
        """The form of the samples; ``None`` while there are none."""
        with self._lock, self._translated():
            text = str(self._db.execute("SELECT form FROM totals").fetchone()[0])
        return SampleForm.from_json(text) if text else None

    def training(self) -> StoredSamples:
        """The samples to train on, as of now."""
        return self._part(held_out=False)

    def held_out(self) -> StoredSamples:
        """The samples that are never trained on, as of now."""
        return self._part(held_out=True)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "SampleStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _insert(self, rows: Sequence[tuple[Array, Array]]) -> list[str]:
        ids = [secrets.token_bytes(_ID_BYTES) for _ in rows]
        if not rows:
            return []
        forms = {SampleForm.of(x, y) for x, y in rows}
        with self._commit() as db:
            form, count = db.execute("SELECT form, training + held_out FROM totals").fetchone()
            known = SampleForm.from_json(form) if count else next(iter(forms))
            if forms != {known}:
                raise LayoutError(f"a sample of {next(iter(forms - {known}))}; this store holds {known}")
            db.execute("UPDATE totals SET form = ?", (known.to_json(),))
            for sample_id, (x, y) in zip(ids, rows, strict=True):
                held_out, size = _is_held_out(sample_id), x.nbytes + y.nbytes
                x_bytes, y_bytes = _little(x), _little(y)
                db.execute(
                    "INSERT INTO samples (sample_id, held_out, size, x, y, checksum)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (sample_id, held_out, size, x_bytes, y_bytes, checksum(x_bytes, y_bytes)),
                )
                _count(db, held_out=held_out, size=size, sign=1)
            self._evict(db)
        return [sample_id.hex() for sample_id in ids]

    def _evict(self, db: sqlite3.Connection) -> None:
        """Oldest first; the newest sample stays even where it alone passes ``max_bytes``."""
        while True:
            count, size = db.execute("SELECT training + held_out, bytes FROM totals").fetchone()
            if count <= 1 or (count <= self._max_samples and size <= self._max_bytes):
                return
            held_out, freed = db.execute(
                "DELETE FROM samples WHERE sequence = (SELECT min(sequence) FROM samples)"
                " RETURNING held_out, size"
            ).fetchone()
            _count(db, held_out=held_out, size=freed, sign=-1)
            db.execute("UPDATE totals SET evicted = evicted + 1")

    def _part(self, *, held_out: bool) -> StoredSamples:
        with self._lock, self._translated():
            rows = self._db.execute(
                "SELECT sequence, size FROM samples WHERE held_out = ? ORDER BY sequence", (held_out,)
            ).fetchall()
        return StoredSamples(
            self._read,
            form=self.form,
            sequences=[sequence for sequence, _ in rows],
            size=sum(size for _, size in rows),
        )

    def _read(self, sequences: Sequence[int]) -> list[tuple[int, bytes, bytes]]:
        marks = ",".join("?" * len(sequences))
        with self._lock, self._translated():
            rows = self._db.execute(
                f"SELECT sequence, x, y, checksum FROM samples WHERE sequence IN ({marks})", sequences
            ).fetchall()
        spoilt = {row[0] for row in rows if row[3] is not None and row[3] != checksum(row[1], row[2])}
        if spoilt:
            self._drop(spoilt)
        return [(sequence, x, y) for sequence, x, y, _ in rows if sequence not in spoilt]

    def _drop(self, sequences: Iterable[int]) -> None:
        """Drop samples that the card has spoilt."""
        with self._commit() as db:
            for sequence in sequences:
                row = db.execute(
                    "DELETE FROM samples WHERE sequence = ? RETURNING held_out, size", (sequence,)
                ).fetchone()
                if row is not None:
                    _count(db, held_out=row[0], size=row[1], sign=-1)
                    db.execute("UPDATE totals SET damaged = damaged + 1")

    def _total(self, column: str) -> int:
        with self._lock, self._translated():
            return int(self._db.execute(f"SELECT {column} FROM totals").fetchone()[0])

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._gate():
            if not self.path.exists():
                os.close(_open_shared(self.path))
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._set_aside()
                os.close(_open_shared(self.path))
                return self._connect()

    def _renew(self) -> None:
        """Set a store aside that is damaged within, and keep what can be read of it, for the next call."""
        with self._gate():
            self._db.close()
            if not is_sound(self.path):  # else another process was faster
                beside = self.path.with_name(f".{self.path.name}.rescue")
                beside.unlink(missing_ok=True)
                os.close(_open_shared(beside))
                with contextlib.closing(sqlite3.connect(beside, isolation_level=None)) as fresh:
                    fresh.executescript(_SCHEMA)
                    rescue(self.path, fresh, most=self._max_samples, is_held_out=_is_held_out)
                self._set_aside()
                os.replace(beside, self.path)
            self._db = self._connect()

    @contextmanager
    def _gate(self) -> Iterator[None]:
        """One process at a time makes the file, or sets a damaged one aside."""
        gate = _open_shared(self.path.with_name(f".{self.path.name}.lock"))
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield
        finally:
            os.close(gate)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30.0)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "journal_size_limit=4194304"):
                db.execute(f"PRAGMA {pragma}")
            # A store that is made already is not written to: its app may be writing for a while.
            if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'totals'").fetchone():
                db.executescript(_SCHEMA)
            elif not db.execute(
                "SELECT 1 FROM pragma_table_info('totals') WHERE name = 'damaged'"
            ).fetchone():
                db.executescript(_CHECKSUMS)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self) -> None:
        mark = f"damaged-{secrets.token_hex(4)}"
        for companion in ("-wal", "-shm", ""):
            old = self.path.with_name(self.path.name + companion)
            if old.exists():
                os.replace(old, self.path.with_name(f"{self.path.name}.{mark}{companion}"))
        self.set_aside = self.path.with_name(f"{self.path.name}.{mark}")

    @contextmanager
    def _commit(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated(), commit(self._db, purpose="samples"):
            yield self._db

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors in our own words; the lock is held. After damage the store is renewed, though this call
        has failed."""
        try:
            with storage_errors(f"the sample store {self.path}", RIGHTS_HINT):
                yield
        except StorageError as error:
            if is_damage(error) and self._opened:
                with storage_errors(f"the sample store {self.path}", RIGHTS_HINT):
                    self._renew()
            raise


def _open_shared(path: Path) -> int:
    """Open for writing; a new file is group-writable: agent and app are two users of one group."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    with contextlib.suppress(OSError):  # another user's file already has its mode
        os.fchmod(descriptor, 0o660)
    return descriptor


def _is_held_out(sample_id: bytes) -> bool:
    draw = hashlib.sha256(b"held out" + sample_id).digest()
    return int.from_bytes(draw[:8], "big") < HELD_OUT_SHARE * 2.0**64


def _count(db: sqlite3.Connection, *, held_out: bool, size: int, sign: int) -> None:
    column = "held_out" if held_out else "training"
    db.execute(f"UPDATE totals SET {column} = {column} + ?, bytes = bytes + ?", (sign, sign * size))


def _little(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
