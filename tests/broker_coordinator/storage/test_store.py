"""One suite for every Store."""

import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from broker_coordinator.storage.records import (
    DoubledDevice,
    InventoryRow,
    Lease,
    NewUpdate,
    RuntimeCounts,
    Upload,
)
from broker_coordinator.storage.schema import MIGRATIONS
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.errors import StorageError
from fl_protocol.presence import DevicePresence
from fl_protocol.ranges import ByteRanges
from fl_protocol.version import VersionId

BASE = VersionId(epoch=1, number=0, digest=b"d" * 16)


@pytest.fixture(params=[True, False], ids=["durable", "fast"])
def open_store(request, tmp_path):
    """Open the store in the test's folder, as often as wanted."""
    stores = []

    def give(**opening) -> SqliteStore:
        stores.append(SqliteStore.open(tmp_path, durable=request.param, **opening))
        return stores[-1]

    yield give
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store):
    return open_store()


@pytest.fixture
def new(make_update):
    """``new(number, base)``: an update to accept, its scalars made up."""

    def give(number: int, base: VersionId = BASE, **changes) -> NewUpdate:
        update = make_update(number, base, **changes)
        return NewUpdate(
            update_id=update.update_id,
            device=update.device,
            hash=update.hash,
            header=update.header.pack(),
            base=base,
            size=len(update.payload),
            payload=update.payload,
            weight=b"\0\0\x80?",
            scale=b"\0\0\x80?",
            norm=b"\1\2\3\4",
            staleness=0,
        )

    return give


@pytest.fixture
def version():
    """``version(number, ...)``: a version's record, its hashes made up."""
    from broker_coordinator.storage.records import VersionRecord

    def give(number: int, *, through: int = 0, updates: int = 0, epoch: int = 1) -> VersionRecord:
        return VersionRecord(
            epoch=epoch,
            number=number,
            digest=bytes([number]) * 32,
            published_sha256=b"p" * 32,
            rules="r",
            through_seq=through,
            updates=updates,
            closed_by="size",
            term=1,
        )

    return give


def test_an_accepted_update_is_there_after_reopening(open_store, new):
    """Row, id and scalars come back as the very bytes that went in, in ``accept_seq`` order."""
    store = open_store()
    updates = [new(number) for number in range(150)]
    sequences = [store.accept(update) for update in updates]
    store.close()
    waiting = list(open_store().waiting())
    assert [row.accept_seq for row in waiting] == sequences == sorted(sequences)
    for row, update in zip(waiting, updates, strict=True):
        assert (row.update_id, row.header, row.payload) == (update.update_id, update.header, update.payload)
        assert (row.weight, row.scale, row.norm) == (update.weight, update.scale, update.norm)
        assert row.state == "waiting"


def test_an_id_has_one_word_for_ever(store, new):
    """Accepted is done, refused is refused with its first reason, unknown is unknown."""
    update, other = new(1), new(2)
    assert store.outcome(update.update_id) is None
    store.accept(update)
    assert store.outcome(update.update_id).state == "done"
    for reason in ("codec", "stale"):
        store.refuse(other.update_id, hash=other.hash, device="d", base=BASE, reason=reason)
    assert store.outcome(other.update_id).reason == "codec"
    assert store.outcome(other.update_id).hash == other.hash


def test_nothing_is_accepted_twice(store, new):
    """Neither an id nor a second contribution of a device for a base, even if nobody asked first."""
    update = new(1)
    store.accept(update)
    with pytest.raises(StorageError):
        store.accept(update)
    with pytest.raises(StorageError):
        store.accept(new(2, device=update.device))
    assert store.counted(update.device, BASE)
    assert not store.counted(update.device, replace(BASE, epoch=2))
    assert not store.counted("another", BASE)
    assert store.counts().accepted == 1


def test_a_transaction_is_whole_or_not_there(store, new):
    """An exception undoes every verb of the block, nested ones included; sequences go on after it."""
    first = store.accept(new(1))

    def broken() -> None:
        with store.transaction():
            store.accept(new(2))
            with store.transaction():
                store.next_counter()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert store.counts().accepted == 1
    assert store.office().counter == 0
    assert store.accept(new(3)) == first + 1


def test_a_reader_sees_commits_only(open_store, new):
    """A read-only store beside the writer sees what is committed, and inside a transaction one moment."""
    store = open_store()
    reader = open_store(read_only=True)
    with store.transaction():
        store.accept(new(1))
        assert reader.counts().accepted == 0
    with reader.transaction():
        assert reader.counts().accepted == 1
        store.accept(new(2))
        assert reader.counts().accepted == 1
    assert reader.counts().accepted == 2
    with pytest.raises(StorageError):
        reader.take_office()


def test_the_office_only_goes_up(store):
    """Terms, counters, epochs and the horizon never go back."""
    assert [store.take_office().term for _ in range(2)] == [1, 2]
    assert [store.next_counter() for _ in range(2)] == [1, 2]
    assert [store.next_command_sequence() for _ in range(2)] == [1, 2]
    for horizon in [(1, 5), (1, 3), (0, 99)]:
        store.raise_horizon(horizon)
        assert store.office().horizon == (1, 5)
    store.raise_horizon((2, 0))
    assert store.office().horizon == (2, 0)
    store.add_uptime(2.5)
    store.add_uptime(-1.0)
    assert store.office().uptime_s == 2.5


def test_a_new_epoch_is_above_all_that_devices_have_seen(store):
    """Restored from before another recovery: above that epoch too, and commands above those obeyed in it."""
    term = store.take_office().term
    for witnessed in (1, 3, 2):
        store.roll_back(witnessed)
    assert (store.office().rolled_back, store.office().witnessed) == (True, 3)
    reopened = store.open_epoch()
    assert (reopened.epoch, reopened.rolled_back, reopened.term) == (4, False, term + (1 << 20))
    assert store.open_epoch().epoch == 5
    assert store.take_office().term == term + (2 << 20) + 1


def test_a_version_takes_the_rows_that_wait(store, new, version):
    """Rows up to ``through_seq`` become folded with the version; later and quarantined ones do not."""
    store.commit_version(version(0))
    rows = [store.accept(new(number)) for number in range(4)]
    store.quarantine(rows[1], "its fault")
    store.commit_version(version(1, through=rows[2], updates=2))
    assert [row.accept_seq for row in store.folded_into(1)] == [rows[0], rows[2]]
    assert [row.accept_seq for row in store.waiting()] == [rows[3]]
    assert [(row.state, row.reason) for row in store.rows()][1] == ("quarantined", "its fault")
    assert store.newest_version().number == 1
    assert [record.number for record in store.versions()] == [0, 1]
    assert [record.number for record in store.versions(1)] == [1]
    with pytest.raises(StorageError, match="does not wait"):
        store.quarantine(rows[0], "too late")


@pytest.mark.parametrize(
    "wrong", [{"number": 3}, {"number": 1}, {"number": 2, "epoch": 0}, {"number": 2, "updates": 5}]
)
def test_a_version_that_does_not_follow_is_not_committed(store, new, version, wrong):
    """A gap, a repetition, an older epoch or another number of updates: nothing changes."""
    store.commit_version(version(0))
    store.commit_version(version(1))
    last = store.accept(new(1))
    with pytest.raises(StorageError):
        store.commit_version(version(**{"through": last, "updates": 1} | wrong))
    assert store.newest_version().number == 1
    assert store.counts().waiting == 1


def test_a_version_is_known_by_its_digest(store, version):
    """Number, epoch and digest must all be right; evaluation and publication are recorded."""
    store.commit_version(version(0))
    known = store.newest_version().id
    assert store.base_known(known)
    assert not store.base_known(replace(known, digest=b"x" * 16))
    assert not store.base_known(replace(known, epoch=2))
    assert not store.base_known(replace(known, number=1))
    store.set_evaluation(0, {"correct": 3.0, "count": 4.0})
    store.mark_published(0)
    assert store.version(0).metrics == {"correct": 3.0, "count": 4.0}
    assert store.version(0).published
    with pytest.raises(StorageError, match="no version 7"):
        store.mark_published(7)


def test_reports_of_devices_are_summed_by_base(store, new):
    """``before.*`` sums of accepted updates count for their base version; quarantined ones do not."""
    metrics = {"before.correct": 3.0, "before.count": 4.0, "after.correct": 4.0}
    for number in range(3):
        last = store.accept(new(number, metrics=metrics))
    store.accept(new(3))
    store.accept(new(4, replace(BASE, number=1), metrics=metrics))
    store.quarantine(last, "broken")
    reports = store.device_evaluation(0)
    assert (reports.devices, reports.sums) == (2, {"correct": 6.0, "count": 8.0})


def test_an_upload_remembers_what_is_durable(store, new):
    """Ranges merge; opening again keeps them; accepting or refusing ends the upload."""
    update = new(1)
    upload = Upload(update_id=update.update_id, device="d", header=update.header, hash=update.hash)
    store.open_upload(upload)
    store.put_range(update.update_id, 0, 4096)
    store.put_range(update.update_id, 8192, 9000)
    store.open_upload(upload)
    assert store.put_range(update.update_id, 4096, 8192).ranges == ByteRanges.of([(0, 9000)])
    assert [known.update_id for known in store.uploads()] == [update.update_id]
    store.reset_upload(update.update_id)
    assert not store.upload(update.update_id).ranges
    store.accept(update)
    assert store.uploads() == []
    with pytest.raises(StorageError, match="no upload"):
        store.put_range(update.update_id, 0, 1)


def test_a_late_will_of_an_older_session_is_ignored(store):
    """A farewell counts in its own session only; each sign of life moves ``last_seen``."""
    birth = DevicePresence(
        online=True, session=b"new-sess", agent="0.1", runtimes=("onnx", "numpy"), samples=7
    )
    store.device_seen("d", birth)
    store.device_seen("d", DevicePresence(online=False, session=b"old-sess"))
    seen = store.device("d")
    assert (seen.online, seen.agent, seen.runtimes, seen.samples) == (True, "0.1", ("onnx", "numpy"), 7)
    store.device_seen("d", DevicePresence(online=False, session=b"new-sess"))
    assert not store.device("d").online
    assert store.device("d").last_seen > seen.last_seen
    store.count_update("d", accepted=True, bytes_up=100, base=3)
    store.count_update("d", accepted=False, bytes_up=20)
    store.count_update("d", accepted=True, bytes_up=5, count=0)
    counted = store.device("d")
    assert (counted.accepted, counted.refused, counted.bytes_up, counted.last_base) == (1, 1, 125, 3)
    assert [record.device for record in store.devices()] == ["d"]
    assert store.device("unknown") is None


def test_many_updates_are_accepted_as_one_after_the_other(store, new):
    """In their order, behind those before; all of them or none; each a sign of life of its device."""
    first = store.accept(new(1))
    updates = [replace(new(number), runtime="onnx") for number in range(2, 200)]
    assert list(store.accept_all(updates)) == list(range(first + 1, first + 199))
    assert [row.update_id for row in store.waiting()][1:] == [update.update_id for update in updates]
    assert store.runtimes()["onnx"].accepted == 198
    with pytest.raises(StorageError):
        store.accept_all([new(300), updates[7]])
    assert store.outcome(new(300).update_id) is None
    assert store.accept(new(301)) == first + 199
    assert list(store.accept_all([])) == []
    store.count_accepted(updates)
    store.count_accepted([replace(updates[0], size=5)])
    device = store.device(updates[0].device)
    assert (device.accepted, device.bytes_up) == (2, updates[0].size + 5)
    assert (device.last_base, device.runtime) == (updates[0].base.number, "onnx")
    assert device.last_seen > store.device(updates[-1].device).last_seen


def test_updates_are_counted_by_what_trained_them(store, new, version):
    """Accepted at once, folded with their version; a device shows its newest; strangers share one count."""
    store.commit_version(version(0))
    for number, runtime in enumerate(["onnx", "tflite", "onnx", ""], 1):
        store.accept(replace(new(number), runtime=runtime))
    store.commit_version(version(1, through=3, updates=3))
    counted = {name: (counts.accepted, counts.folded) for name, counts in store.runtimes().items()}
    assert counted == {"": (1, 0), "onnx": (2, 2), "tflite": (1, 1)}
    for number in range(5, 50):
        store.accept(replace(new(number), runtime=f"Trainer{number}"))
    assert len(store.runtimes()) == 33
    assert store.runtimes()["other"].accepted == 45 - 29
    store.commit_version(version(2, through=49, updates=46))
    assert sum(counts.folded for counts in store.runtimes().values()) == 49
    store.count_update("d", accepted=True, bytes_up=1, runtime="tflite")
    store.count_update("d", accepted=False, bytes_up=1)
    assert store.device("d").runtime == "tflite"


def test_a_store_from_before_runtimes_were_named_keeps_its_counts(tmp_path):
    """What was accepted then is counted without a name; its rows read as before."""
    connection = sqlite3.connect(tmp_path / "coordinator.db")
    connection.executescript(f"BEGIN; {MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT;")
    connection.execute("UPDATE office SET forgotten = 5")
    connection.executemany(
        "INSERT INTO updates (update_id, device, hash, header, base_epoch, base_number, stored, size, weight,"
        " scale, norm, staleness, state)"
        " VALUES (?, ?, x'', x'', 1, 0, 'dropped', 1, x'00000000', x'00000000', x'00000000', 0, ?)",
        [(b"a" * 16, "a", "folded"), (b"b" * 16, "b", "waiting")],
    )
    connection.commit()
    connection.close()
    store = SqliteStore.open(tmp_path)
    assert store.runtimes() == {"": RuntimeCounts(accepted=7, folded=6)}
    assert [row.device for row in store.waiting()] == ["b"]
    store.close()


def test_a_store_of_an_older_release_is_read_and_not_changed(tmp_path):
    """Nobody need start a coordinator first, and one of that release may be at work on it."""
    connection = sqlite3.connect(tmp_path / "coordinator.db")
    connection.executescript(f"BEGIN; {MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT;")
    connection.execute("INSERT INTO devices (device, accepted) VALUES ('pi-1', 3)")
    connection.commit()
    reader = SqliteStore.open(tmp_path, read_only=True)
    assert [(record.device, record.accepted, record.runtime) for record in reader.devices()] == [
        ("pi-1", 3, "")
    ]
    assert (list(reader.versions()), list(reader.doubles())) == ([], [])
    reader.close()
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


def test_a_doubled_identity_is_counted(store):
    """The newest words and time stand; a device need not be known otherwise."""
    store.note_double("d", how="one way", seen_at=1.0)
    store.note_double("d", how="another way", seen_at=2.0)
    assert store.doubles() == [DoubledDevice(device="d", count=2, how="another way", seen_at=2.0)]


def test_leases_and_inventory_come_back(store):
    """Both are kept whole; a lease ends once."""
    lease = Lease(lease_id=b"l" * 8, device="d", version=BASE, deadline=12.5)
    store.grant_lease(lease)
    assert store.leases() == [lease]
    assert store.end_lease(lease.lease_id)
    assert not store.end_lease(lease.lease_id)
    rows = [InventoryRow(topic=f"t/{number}", sha256=b"s" * 32, first_version=number) for number in range(3)]
    store.replace_inventory(rows)
    store.replace_inventory(rows[1:])
    assert store.inventory() == rows[1:]


def test_rules_are_named_by_their_hash(store):
    """The same text has one name."""
    name = store.put_rules('{"a":1}')
    assert store.put_rules('{"a":1}') == name
    assert store.rules(name) == '{"a":1}'
    assert store.rules("unknown") is None


def test_a_damaged_file_is_set_aside_and_never_replaced(tmp_path):
    """The operator is told to restore a backup; the next start does not begin from nothing either."""
    SqliteStore.open(tmp_path).close()
    path = tmp_path / "coordinator.db"
    path.write_bytes(b"not a database at all" * 300)
    with pytest.raises(StorageError, match=r"damaged.*set aside as coordinator\.db\.damaged-1"):
        SqliteStore.open(tmp_path)
    assert not path.exists()
    assert (tmp_path / "coordinator.db.damaged-1").exists()
    with pytest.raises(StorageError, match="missing"):
        SqliteStore.open(tmp_path)
    assert not path.exists()


def test_a_commit_survives_kill_9(tmp_path):
    """The writer is killed with its log unmerged; a reader, and the next writer, find what it committed."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "from broker_coordinator.storage.sqlite_store import SqliteStore\n"
        "SqliteStore.open(Path(sys.argv[1])).take_office(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == -9
    for read_only in (True, False):
        store = SqliteStore.open(tmp_path, read_only=read_only)
        assert store.office().term == 1
        store.close()


def test_a_damaged_page_is_found_at_the_start(tmp_path, new):
    """A page in the middle that was overwritten is found before anything is counted on top of it."""
    store = SqliteStore.open(tmp_path)
    for number in range(50):
        store.accept(new(number))
    store.close()
    path = tmp_path / "coordinator.db"
    content = bytearray(path.read_bytes())
    content[4096 * 3 : -4096] = b"\xff" * (len(content) - 4096 * 4)
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        SqliteStore.open(tmp_path)


def test_a_state_without_its_journal_does_not_begin_anew(tmp_path):
    """State files without a database: updates would be counted again."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "1-4.state").write_bytes(b"")
    with pytest.raises(StorageError, match=r"missing.*1-4\.state"):
        SqliteStore.open(tmp_path)


def test_a_newer_schema_is_left_alone(tmp_path):
    """A file of a later version of Lichen is refused, untouched."""
    SqliteStore.open(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "coordinator.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="newer"):
        SqliteStore.open(tmp_path)
    assert (tmp_path / "coordinator.db").exists()


def test_reading_where_nothing_is_says_so(tmp_path):
    """``lichen status`` in the wrong folder makes no file there."""
    with pytest.raises(StorageError, match="no coordinator has run"):
        SqliteStore.open(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []
