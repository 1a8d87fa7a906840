"""Audit: does the journal balance, do versions replay bit for bit, and do devices agree?

It reads the state as it is on the disk, while a coordinator runs or not, and repairs nothing. Each device
keeps a ledger of the updates it made and of the word it got on each; joined with the journal it shows what
was lost (the device was told ``done``, and there is no row) or counted twice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker_coordinator.aggregation.version_state import VersionFiles
from broker_coordinator.books.ledgers import AgentLedger, read_ledger
from broker_coordinator.books.replay import replay
from broker_coordinator.storage.records import AcceptedUpdate, Office, VersionRecord
from broker_coordinator.storage.sqlite_store import SqliteStore
from broker_coordinator.storage.store import Store
from fl_protocol.errors import StorageError

__all__ = ["AuditReport", "audit"]

_MOST_FAULTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found.

    ``forgotten`` updates were accepted, and their rows pruned below the horizon. ``versions_checked`` are
    those whose payloads are retained, ``versions_ok`` those whose replay gave the committed digest.

    Of devices: ``created`` updates are each ``done`` or ``refused`` by the coordinator's word, ``expired`` by
    policy, ``destroyed`` (unreadable), or in the ``outbox``. ``receipt_pending`` are in the outbox and in the
    journal: their device does not know it yet. ``given_up`` are done for their device, of an epoch before the
    last ``recover``, and not in the journal that was restored then. ``lost`` are done and not in the journal
    for no such reason. ``stores_destroyed`` counts outboxes that were damaged, each with what was in it.
    ``faults`` holds one sentence each, at most 100.
    """

    accepted: int
    waiting: int
    folded: int
    quarantined: int
    refused: int
    forgotten: int
    versions_checked: int
    versions_ok: int
    agents: int
    lost: int
    duplicated: int
    receipt_pending: int
    given_up: int = 0
    created: int = 0
    done: int = 0
    refused_to_devices: int = 0
    expired: int = 0
    destroyed: int = 0
    outbox: int = 0
    stores_destroyed: int = 0
    faults: Sequence[str] = field(default_factory=tuple)

    @property
    def replay_ok(self) -> bool:
        """Whether every version that was checked replayed."""
        return self.versions_ok == self.versions_checked

    @property
    def balanced(self) -> bool:
        """Whether nothing at all is wrong."""
        return self.replay_ok and not (self.lost or self.duplicated or self.faults)

    def to_json(self) -> dict[str, Any]:
        """All of it, as `--json` prints it."""
        names = (*self.__slots__, "replay_ok", "balanced")
        return {name: getattr(self, name) for name in names} | {"faults": list(self.faults)}


def audit(state_dir: Path, agents: Sequence[Path] = ()) -> AuditReport:
    """Audit a coordinator's state folder, joined with the state folders of agents.

    Raises:
        StorageError: the state, or an agent's, cannot be opened.
    """
    # Ledgers first: an update that is done for its device by then is in the journal by now.
    ledgers = [read_ledger(folder) for folder in agents]
    store = SqliteStore.open(state_dir, read_only=True)
    try:
        with store.transaction():
            return _Audit(store, state_dir, ledgers).report()
    finally:
        store.close()


class _Audit:
    """One pass over one moment of the store."""

    def __init__(self, store: Store, folder: Path, ledgers: Sequence[AgentLedger]) -> None:
        self._store = store
        self._folder = folder
        self._ledgers = ledgers
        self._office: Office = store.office()
        self._versions = {version.number: version for version in store.versions()}
        self._devices: dict[bytes, str] = {}
        self._folded: Counter[int] = Counter()
        self._duplicated = 0
        self._given_up = 0
        self._faults: list[str] = []

    def report(self) -> AuditReport:
        """Look at everything."""
        self._read_journal()
        self._check_versions()
        checked, ok = self._replay()
        lost = self._lost()
        self._check_ledgers()
        created: Counter[bytes] = Counter()
        for ledger in self._ledgers:
            created.update(ledger.created)
        self._twice(created.values(), "update ids were created twice")
        counts = self._store.counts()
        return AuditReport(
            accepted=counts.accepted,
            waiting=counts.waiting,
            folded=counts.folded,
            quarantined=counts.quarantined,
            refused=counts.refused,
            forgotten=self._office.forgotten,
            versions_checked=checked,
            versions_ok=ok,
            agents=len(self._ledgers),
            lost=lost,
            duplicated=self._duplicated,
            receipt_pending=sum(len(ledger.outbox & self._devices.keys()) for ledger in self._ledgers),
            given_up=self._given_up,
            created=created.total(),
            done=sum(len(ledger.done) for ledger in self._ledgers),
            refused_to_devices=sum(len(ledger.refused) for ledger in self._ledgers),
            expired=sum(len(ledger.expired) for ledger in self._ledgers),
            destroyed=sum(len(ledger.destroyed) for ledger in self._ledgers),
            outbox=sum(len(ledger.outbox) for ledger in self._ledgers),
            stores_destroyed=sum(ledger.stores_destroyed for ledger in self._ledgers),
            faults=tuple(self._faults[:_MOST_FAULTS]),
        )

    def _read_journal(self) -> None:
        """Each row in exactly one state, each id and each (device, base) once, no row missing."""
        ids: Counter[bytes] = Counter()
        bases: Counter[tuple[str, tuple[int, int]]] = Counter()
        last = 0
        for row in self._store.rows():
            last = row.accept_seq
            ids[row.update_id] += 1
            bases[row.device, row.base] += 1
            self._devices[row.update_id] = row.device
            self._check_row(row)
        self._twice(ids.values(), "update ids are in the journal twice")
        self._twice(bases.values(), "devices counted twice for a base version")
        newest = self._newest()
        last = max(last, newest.through_seq if newest else 0)
        missing = last - ids.total() - self._office.forgotten
        if missing:
            self._fault(f"{missing} rows are missing from the journal: it has {ids.total()} up to {last}")

    def _check_row(self, row: AcceptedUpdate) -> None:
        newest = self._newest()
        where = f"update {row.accept_seq} of {row.device}"
        if row.state == "folded":
            version = self._versions.get(row.version or 0)
            self._folded[row.version or 0] += 1
            before = self._versions.get((row.version or 0) - 1)
            if version is None:
                if (row.version or 0) >= min(self._versions, default=0):
                    self._fault(f"{where} is folded into version {row.version}, which is not there")
            elif row.accept_seq > version.through_seq or (before and row.accept_seq <= before.through_seq):
                self._fault(f"{where} is outside the range of version {version.number}")
        elif row.version is not None:
            self._fault(f"{where} is {row.state}, and folded into version {row.version}")
        elif row.state == "quarantined" and not row.reason:
            self._fault(f"{where} is quarantined without a reason")
        elif row.state == "waiting" and newest is not None and row.accept_seq <= newest.through_seq:
            self._fault(f"{where} waits, although version {newest.number} was made without it")

    def _check_versions(self) -> None:
        """Each version has its rows; those up to the anchor may have been pruned."""
        for number, version in self._versions.items():
            found = self._folded[number]
            pruned = number <= self._office.anchor and self._office.forgotten
            if found > version.updates or (found < version.updates and not pruned):
                self._fault(
                    f"version {number} was made from {version.updates} updates, {found} are in the journal"
                )

    def _replay(self) -> tuple[int, int]:
        """Versions checked, and those of them that came out as they were committed."""
        states = VersionFiles(self._folder)
        checked = ok = 0
        for number, version in self._versions.items():
            previous = self._versions.get(number - 1)
            if number < self._office.anchor:
                continue
            try:
                if previous is None or number == self._office.anchor:
                    states.read(version)
                    continue
                digest = replay(self._store, states, previous, version)
                reason = "" if digest == version.digest else "the replay gives other bits"
            except StorageError as error:
                reason = str(error)
            if reason and self._pruned_meanwhile(number):
                continue
            checked += 1
            ok += not reason
            if reason:
                self._fault(f"version {number}: {reason}")
        return checked, ok

    def _pruned_meanwhile(self, number: int) -> bool:
        """Whether the coordinator dropped what a replay of this version needs since we began."""
        now = SqliteStore.open(self._folder, read_only=True)
        try:
            return now.office().anchor >= number
        finally:
            now.close()

    def _lost(self) -> int:
        """Updates that a device was told are done, and that are not in the journal."""
        lost = 0
        epoch = self._office.epoch
        forgotten = {record.device: record.forgotten for record in self._store.devices()}
        for ledger in self._ledgers:
            missing = [update_id for update_id in ledger.done if update_id not in self._devices]
            # Rows are pruned oldest first: so many of this device's oldest may be gone by right.
            owners = Counter(self._devices[known] for known in ledger.done if known in self._devices)
            device = owners.most_common(1)[0][0] if owners else None
            excused = forgotten.get(device, 0) if device else self._office.forgotten
            unexcused = missing[excused:]
            # Of an epoch before a restored backup was recovered from: that is known, and was decided.
            really = [known for known in unexcused if ledger.epochs.get(known, epoch) >= epoch]
            self._given_up += len(unexcused) - len(really)
            lost += len(really)
            if really:
                self._fault(f"{ledger.folder}: {len(really)} updates are done, and not in the journal")
            wronged = len(ledger.refused & self._devices.keys())
            if wronged:
                self._fault(f"{ledger.folder}: {wronged} updates were refused, and are in the journal")
        return lost

    def _check_ledgers(self) -> None:
        """Each update that a device made is in exactly one place."""
        for ledger in self._ledgers:
            ids = (ledger.done, ledger.refused, ledger.expired, ledger.destroyed, ledger.outbox)
            places = Counter(update_id for place in ids for update_id in place)
            vanished = sum(1 for update_id in ledger.created if not places[update_id])
            if vanished:
                self._fault(f"{ledger.folder}: {vanished} updates were created, and nothing became of them")
            several = sum(1 for count in places.values() if count > 1)
            if several:
                self._fault(f"{ledger.folder}: {several} updates have more than one outcome")

    def _newest(self) -> VersionRecord | None:
        return self._versions[max(self._versions)] if self._versions else None

    def _twice(self, counts: "Mapping[Any, int] | Any", what: str) -> None:
        twice = sum(count - 1 for count in counts)
        self._duplicated += twice
        if twice:
            self._fault(f"{twice} {what}")

    def _fault(self, sentence: str) -> None:
        self._faults.append(sentence)
