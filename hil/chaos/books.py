"""The books of a run: what became of every update that was ever made, reckoned from the witness.

Each created update is exactly one of: folded, waiting or quarantined in the coordinator's journal; refused;
in an outbox; expired by policy; destroyed with its store; given up with a coordinator's store. What is none
of these is lost.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker_coordinator.books.audit import AuditReport
from broker_coordinator.storage.sqlite_store import SqliteStore
from hil.chaos.witness import Witness, read_journal

__all__ = ["Books", "reckon"]

_MOST_SENTENCES = 100
_FAIR = ("stale", "unknown_base")
"""Reasons for which any device's update may be refused, after a long absence or a coordinator's rollback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """How a run ended. The names are those of its JSON; updates are counted once each, ``outbox`` are those
    that wait on a device still, ``given_up`` those accepted by a coordinator that was then rolled back.
    ``strangers`` are in the journal, and nobody made them. ``sentences`` explain what does not balance."""

    seed: int
    broker: str
    faults: Mapping[str, int]
    skipped: Mapping[str, int]
    updates_created: int
    folded: int
    waiting: int
    refused: int
    quarantined: int
    expired: int
    outbox: int
    destroyed: int
    given_up: int
    lost: int
    duplicated: int
    strangers: int
    versions: int
    epochs: int
    replay_ok: bool
    receipts_seen: int
    acts: Sequence[str]
    exits: Sequence[str]
    sentences: Sequence[str] = field(default_factory=tuple)

    @property
    def balanced(self) -> bool:
        """Whether nothing was lost or counted twice, every version replays, and the fleet came back."""
        return self.replay_ok and not (self.lost or self.duplicated or self.sentences)

    def to_json(self) -> dict[str, Any]:
        """All of it, and ``balanced``."""
        body = {name: getattr(self, name) for name in self.__slots__} | {"balanced": self.balanced}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in body.items()}


def reckon(
    witness: Witness,
    state: Path,
    outboxes: Mapping[str, frozenset[bytes]],
    audit: AuditReport,
    *,
    sentences: Sequence[str] = (),
    **facts: Any,
) -> Books:
    """Give every update its one place. ``outboxes`` holds what waits on each device at the end, ``audit`` the
    coordinator's own books, ``sentences`` what is known to be wrong already.

    Raises:
        StorageError, sqlite3.Error: the coordinator's store cannot be read.
    """
    wrong = [*sentences, *(f"audit: {fault}" for fault in audit.faults)]
    states = _states(state)
    refused = read_journal(state).refused
    counts: Counter[str] = Counter()
    duplicated = audit.duplicated
    for update_id, birth in witness.births.items():
        place = _place(update_id, witness, states, refused, outboxes.get(birth.device, frozenset()))
        counts[place] += 1
        who = f"update {update_id.hex()} of {birth.device}"
        if place == "lost":
            wrong.append(f"{who} is lost: its ledger says {birth.outcomes or 'nothing'}")
        told = {receipt.state for receipt in witness.receipts.get(update_id, ())} | birth.outcomes.keys()
        if update_id in states and "refused" in told and update_id not in witness.given_up:
            wrong.append(f"{who} is in the journal, and its device was told that it is refused")
        reason = birth.outcomes.get("refused", "")
        if reason and reason not in _FAIR and birth.device not in witness.meddled:
            wrong.append(f"{who} was refused as {reason}, and nobody had meddled with its device")
        if place in ("waiting", "outbox"):
            wrong.append(f"{who} still is in the {'journal, unfolded' if place == 'waiting' else 'outbox'}")
    strangers = [update_id for update_id in states if update_id not in witness.births]
    devices = read_journal(state).accepted
    for update_id in strangers:
        if devices[update_id] not in witness.suspects:
            wrong.append(
                f"update {update_id.hex()} of {devices[update_id]} is in the journal; nobody made it"
            )
    newest, epochs = _newest(state)
    return Books(
        updates_created=len(witness.births),
        duplicated=duplicated,
        strangers=len(strangers),
        versions=newest,
        epochs=epochs,
        replay_ok=audit.replay_ok,
        receipts_seen=witness.receipts_seen,
        sentences=tuple(wrong[:_MOST_SENTENCES]),
        folded=counts["folded"],
        waiting=counts["waiting"],
        quarantined=counts["quarantined"],
        refused=counts["refused"],
        expired=counts["expired"],
        outbox=counts["outbox"],
        destroyed=counts["destroyed"],
        given_up=counts["given_up"],
        lost=counts["lost"],
        **facts,
    )


def _place(
    update_id: bytes,
    witness: Witness,
    states: Mapping[bytes, str],
    refused: Mapping[bytes, str],
    outbox: frozenset[bytes],
) -> str:
    birth = witness.births[update_id]
    told = {receipt.state for receipt in witness.receipts.get(update_id, ())}
    if update_id in states:
        return states[update_id]
    if update_id in witness.given_up:
        return "given_up"
    if update_id in refused or "refused" in birth.outcomes or "refused" in told:
        return "refused"
    if "done" in birth.outcomes or "done" in told:
        return "lost"
    if "expired" in birth.outcomes:
        return "expired"
    if update_id in outbox:
        return "outbox"
    if "destroyed" in birth.outcomes or birth.destroyed:
        return "destroyed"
    return "lost"


def _states(state: Path) -> dict[bytes, str]:
    store = SqliteStore.open(state, read_only=True)
    try:
        return {row.update_id: row.state for row in store.rows()}
    finally:
        store.close()


def _newest(state: Path) -> tuple[int, int]:
    store = SqliteStore.open(state, read_only=True)
    try:
        newest = store.newest_version()
        return (newest.number if newest else 0), store.office().epoch
    finally:
        store.close()
