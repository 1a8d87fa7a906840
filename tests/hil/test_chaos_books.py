"""The breaker's books: every update has one place, and what has none is seen."""

import hashlib
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from broker_coordinator.books.audit import audit
from broker_coordinator.storage.records import NewUpdate
from broker_coordinator.storage.sqlite_store import SqliteStore
from edge_agent.outbox import Outbox
from fl_protocol.clock import ManualClock
from fl_protocol.receipt import Receipt
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId
from hil.chaos.books import reckon
from hil.chaos.witness import Journal, Witness

BASE = VersionId(epoch=1, number=0, digest=bytes(32))
ONE = np.float32(1).tobytes()


def header(payload: bytes) -> UpdateHeader:
    """A header for a payload."""
    return UpdateHeader(
        incarnation=bytes(8),
        base=BASE,
        codec="float32",
        size=len(payload),
        sha256=hashlib.sha256(payload).digest(),
        fingerprint=bytes(8),
        num_examples=1,
        steps_done=1,
        steps_planned=1,
    )


class Scene:
    """A device's outbox, a coordinator's store, and a witness, without the programs that use them."""

    def __init__(self, folder) -> None:
        self.state = folder / "coordinator"
        self.device = folder / "device"
        self.device.mkdir()
        self.store = SqliteStore.open(self.state)
        self.outbox = Outbox(self.device / "agent.db", max_bytes=1 << 20, max_age_s=1e6, clock=ManualClock())
        self.witness = Witness(folder / "witness.jsonl")

    def create(self, number: int) -> bytes:
        update_id = bytes([number]) * 16
        self.outbox.put(update_id, header(b"payload"), b"payload")
        return update_id

    def accept(self, update_id: bytes) -> None:
        base = VersionId(epoch=1, number=update_id[0], digest=bytes(32))
        self.store.accept(
            NewUpdate(
                update_id=update_id,
                device="dev-00",
                hash=bytes(32),
                header=header(b"payload").pack(),
                base=base,
                size=7,
                payload=b"payload",
                weight=ONE,
                scale=ONE,
                norm=ONE,
                staleness=0,
            )
        )

    def books(self):
        waiting = self.witness.testify("dev-00", self.device)
        return reckon(
            self.witness,
            self.state,
            {"dev-00": waiting},
            audit(self.state),
            seed=1,
            broker="none",
            faults={},
            skipped={},
            acts=(),
            exits=(),
        )

    def close(self) -> None:
        self.store.close()
        self.outbox.close()
        self.witness.close()


@pytest.fixture
def scene(tmp_path):
    """A scene that is closed after the test."""
    made = Scene(tmp_path)
    yield made
    made.close()


def test_each_update_is_in_its_place(scene):
    """Waiting, quarantined, refused, expired, in the outbox: one each, and all of them were created."""
    waiting, quarantined, refused, kept = (scene.create(number) for number in range(1, 5))
    scene.accept(waiting)
    scene.accept(quarantined)
    scene.store.quarantine(2, "not finite")
    scene.outbox.settle(waiting, "done")
    scene.outbox.settle(quarantined, "done")
    scene.outbox.settle(refused, "refused", "stale")
    books = scene.books()
    assert (books.waiting, books.quarantined, books.refused, books.outbox) == (1, 1, 1, 1)
    assert (books.updates_created, books.lost) == (4, 0)
    assert any(kept.hex() in sentence for sentence in books.sentences)  # a quiet fleet has no such


def test_done_and_not_in_the_journal_is_lost(scene):
    """By the ledger's word, or by a receipt that was overheard."""
    by_ledger, by_receipt = scene.create(1), scene.create(2)
    scene.outbox.settle(by_ledger, "done")
    scene.witness.hear("dev-00", by_receipt, Receipt(state="done", epoch=1, term=1))
    books = scene.books()
    assert (books.lost, books.balanced) == (2, False)
    assert {by_ledger.hex() in line or by_receipt.hex() in line for line in books.sentences} == {True}


def test_a_created_update_that_vanishes_is_lost(scene):
    """It was in the outbox, nobody broke the store, and it is nowhere."""
    update_id = scene.create(1)
    scene.witness.testify("dev-00", scene.device)
    with closing(sqlite3.connect(scene.device / "agent.db")) as database, database:
        database.execute("DELETE FROM outbox WHERE update_id = ?", (update_id,))
    books = scene.books()
    assert (books.lost, books.destroyed) == (1, 0)


def test_what_a_broken_store_held_is_destroyed_with_it(scene, tmp_path):
    """The same, but the witness saw the store being damaged."""
    scene.create(1)
    scene.witness.testify("dev-00", scene.device)
    empty = tmp_path / "empty"
    empty.mkdir()
    with_nothing = Outbox(empty / "agent.db", max_bytes=1 << 20, max_age_s=1e6, clock=ManualClock())
    with_nothing.close()
    scene.witness.broken("dev-00", empty, damaged=False)
    scene.device = empty
    books = scene.books()
    assert (books.lost, books.destroyed, books.balanced) == (0, 1, True)


def test_only_what_a_restored_store_does_not_know_is_given_up(scene):
    """Accepted before it was put back and gone after: named. What it still knows must still be there."""
    kept, gone, lost = (scene.create(number) for number in range(1, 4))
    for update_id in (kept, gone, lost):
        scene.outbox.settle(update_id, "done")
    scene.accept(kept)
    before = Journal(accepted=dict.fromkeys((kept, gone, lost), "dev-00"))
    after = Journal(accepted=dict.fromkeys((kept, lost), "dev-00"))
    scene.witness.give_up(before, after, "a backup was put back")
    books = scene.books()
    assert (books.waiting, books.given_up, books.lost) == (1, 1, 1)
    assert any(lost.hex() in sentence for sentence in books.sentences)


def test_an_update_that_nobody_made_is_seen(scene):
    """A row of the journal that no device's ledger has ever had."""
    scene.accept(bytes([9]) * 16)
    books = scene.books()
    assert (books.strangers, books.balanced) == (1, False)


def test_refused_and_counted_is_a_contradiction(scene):
    """The device was told no, and the journal has it."""
    update_id = scene.create(1)
    scene.accept(update_id)
    scene.outbox.settle(update_id, "refused", "conflict")
    assert any("told that it is refused" in sentence for sentence in scene.books().sentences)


def test_a_damaged_store_does_not_testify(scene):
    """Ids that it shows, and that nobody had seen before it was damaged, are not believed."""
    scene.create(1)
    scene.witness.testify("dev-00", scene.device)
    scene.create(2)  # as if the damage had written it
    scene.witness.broken("dev-00", scene.device, damaged=True)
    assert scene.books().updates_created == 1
