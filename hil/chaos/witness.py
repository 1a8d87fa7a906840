"""The witness: what stores said before they were broken, and what was heard on the broker.

A damaged store cannot testify, and one that was rolled back forgets in good faith. So every store is read
just before it is touched, its process dead or stopped, from a copy; and every receipt is overheard. The log
is append-only, a JSON object a line.
"""

import contextlib
import json
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker_coordinator.books.ledgers import read_ledger
from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_protocol.errors import MessageError, ProtocolError, StorageError
from fl_protocol.receipt import Receipt
from fl_protocol.topics import FleetTopics, ReceiptTopic
from fl_protocol.transport import Connected, Received, TransportEvent

__all__ = ["Birth", "Journal", "Overheard", "Witness", "read_journal", "rows_of"]

_AGENT_DATABASE = "agent.db"
_COORDINATOR_DATABASE = "coordinator.db"


@dataclass(slots=True, kw_only=True)
class Birth:
    """One update as the witness knows it: who made it, what its ledger said became of it (outcome and
    reason), and whether the store that it was in was broken afterwards."""

    device: str
    outcomes: dict[str, str] = field(default_factory=dict)
    destroyed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What a coordinator's store says: accepted ids with their device, ids refused with the reason."""

    accepted: dict[bytes, str] = field(default_factory=dict)
    refused: dict[bytes, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheard:
    """A receipt that was seen on the broker."""

    device: str
    state: str
    reason: str


class Witness:
    """Everything that was seen. Its log is written by one thread at a time."""

    def __init__(self, log: Path) -> None:
        self.births: dict[bytes, Birth] = {}
        self.receipts: dict[bytes, list[Overheard]] = {}
        self.given_up: dict[bytes, str] = {}
        """Accepted by a coordinator whose store was then rolled back, damaged or given up: id and why."""
        self.phantoms: set[bytes] = set()
        """Ids that a damaged store showed, and that nobody made."""
        self.suspects: set[str] = set()
        """Devices whose damaged store is in use still: what it says of the time before is not believed."""
        self.meddled: set[str] = set()
        """Devices whose store was damaged, rolled back or cloned: they may have counted already."""
        self.receipts_seen = 0
        self._journal = Journal()
        self._log = log.open("a", encoding="utf-8")
        self._began = time.monotonic()

    def note(self, event: str, **facts: Any) -> None:
        """Append to the log."""
        line = {"s": round(time.monotonic() - self._began, 3), "event": event, **facts}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def hear(self, device: str, update_id: bytes, receipt: Receipt) -> None:
        """A receipt came over the broker."""
        self.receipts_seen += 1
        if receipt.terminal:
            seen = self.receipts.setdefault(update_id, [])
            told = Overheard(device=device, state=receipt.state, reason=receipt.reason)
            if told not in seen:
                seen.append(told)
                self.note("receipt", device=device, id=update_id.hex(), state=receipt.state)

    def testify(self, device: str, folder: Path) -> frozenset[bytes]:
        """Read a device's ledger, whose agent is dead or stopped; the ids that wait in its outbox.

        Nothing is taken from a store that cannot be read.
        """
        try:
            with _copied(folder, _AGENT_DATABASE) as copy:
                ledger = read_ledger(copy)
                lines = _outcomes(copy / _AGENT_DATABASE)
        except (StorageError, sqlite3.Error, OSError) as error:
            self.note("unreadable", device=device, reason=str(error))
            return frozenset()
        for update_id in (*ledger.created, *ledger.outbox):
            if update_id not in self.births and update_id not in self.phantoms:
                self.births[update_id] = Birth(device=device)
                self.note("created", device=device, id=update_id.hex())
        for update_id, outcome, reason in lines:
            birth = self.births.get(update_id)
            if birth is not None and outcome not in birth.outcomes:
                birth.outcomes[outcome] = reason
                self.note("outcome", device=device, id=update_id.hex(), outcome=outcome, reason=reason)
        return ledger.outbox

    def broken(self, device: str, folder: Path, *, damaged: bool) -> None:
        """A device's store was changed behind its back, after it had testified: whatever it does not know
        any more was destroyed with it. ``folder`` is the store as it is now."""
        outbox: frozenset[bytes] = frozenset()
        try:
            with _copied(folder, _AGENT_DATABASE) as copy:
                ledger = read_ledger(copy)
            outbox = ledger.outbox
            if damaged:
                shown = {*ledger.created, *outbox} - self.births.keys()
                self.phantoms |= shown
                self.note("phantoms", device=device, count=len(shown))
        except (StorageError, sqlite3.Error, OSError) as error:
            self.note("unreadable", device=device, reason=str(error))
        self.meddled.add(device)
        if damaged:
            self.suspects.add(device)
        for update_id, birth in self.births.items():
            if birth.device == device and (damaged or update_id not in outbox):
                birth.destroyed = True
        self.note("broken", device=device, damaged=damaged)

    def journal(self, folder: Path) -> Journal:
        """Read a coordinator's journal; where it cannot be read, what it said last."""
        try:
            self._journal = read_journal(folder)
        except (StorageError, sqlite3.Error, OSError) as error:
            self.note("unreadable", device="coordinator", reason=str(error))
        return self._journal

    def give_up(self, before: Journal, after: Journal, why: str) -> None:
        """A coordinator's store was changed behind its back: what it had accepted, and does not know any
        more, was given up."""
        gone = before.accepted.keys() - after.accepted.keys()
        self.given_up |= dict.fromkeys(gone, why)
        self.note(
            "given up",
            why=why,
            accepted=len(before.accepted),
            gone=sorted(update_id.hex() for update_id in gone),
        )

    @contextlib.contextmanager
    def listening(self, port: int, fleet: str) -> Iterator[None]:
        """Overhear every receipt that the broker on ``port`` carries, while the block runs."""
        topics = FleetTopics(fleet)
        transport = MqttTransport(BrokerAddress.parse(f"mqtt://127.0.0.1:{port}"), "witness", keepalive_s=10)

        def take(event: TransportEvent) -> None:
            if isinstance(event, Connected):
                transport.subscribe([f"{topics.prefix}down/+/update/+"])
            elif isinstance(event, Received):
                with contextlib.suppress(MessageError, ProtocolError):
                    topic = topics.parse(event.topic)
                    if isinstance(topic, ReceiptTopic):
                        self.hear(topic.device, topic.update_id, Receipt.unpack(event.payload))

        transport.start(take)
        try:
            yield
        finally:
            transport.stop()


def read_journal(folder: Path) -> Journal:
    """A coordinator's journal, from a copy of its store.

    Raises:
        StorageError, sqlite3.Error, OSError: it cannot be read.
    """
    with _opened_copy(folder) as database:
        accepted = dict(database.execute("SELECT update_id, device FROM updates"))
        refused = dict(database.execute("SELECT update_id, reason FROM refusals"))
    return Journal(accepted=accepted, refused=refused)


def rows_of(folder: Path) -> dict[str, "Counter[tuple[Any, ...]]"]:
    """Every row of a coordinator's store by table, from a copy: to see what damage has changed.

    Raises:
        StorageError, sqlite3.Error, OSError: it cannot be read.
    """
    with _opened_copy(folder) as database:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        tables = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        return {name: Counter(database.execute(f"SELECT * FROM {name}")) for (name,) in tables}


@contextlib.contextmanager
def _copied(folder: Path, database: str) -> Iterator[Path]:
    """A folder with a copy of a database and its companions: opening one changes it, and needs room."""
    if not (folder / database).exists():
        raise StorageError(f"there is no {database} in {folder}")
    with tempfile.TemporaryDirectory(prefix="lichen-witness-") as name:
        for suffix in ("", "-wal"):
            if (folder / f"{database}{suffix}").exists():
                shutil.copyfile(folder / f"{database}{suffix}", Path(name) / f"{database}{suffix}")
        yield Path(name)


@contextlib.contextmanager
def _opened_copy(folder: Path) -> Iterator[sqlite3.Connection]:
    with _copied(folder, _COORDINATOR_DATABASE) as copy:
        database = sqlite3.connect(copy / _COORDINATOR_DATABASE)
        with contextlib.closing(database):
            yield database


def _outcomes(path: Path) -> Iterable[tuple[bytes, str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(
            "SELECT update_id, outcome, reason FROM ledger WHERE outcome <> 'created'"
        ).fetchall()
