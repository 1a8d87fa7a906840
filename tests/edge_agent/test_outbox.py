"""The outbox: one commit per verb, a stated drop policy, and a ledger that forgets nothing it should not."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest

from edge_agent import outbox as outbox_module
from edge_agent import outbox_file
from edge_agent.outbox import Outbox
from edge_agent.outbox_counts import read_counts
from edge_agent.outbox_file import OutboxFile
from fl_protocol.clock import ManualClock
from fl_protocol.errors import StorageError
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId

PAYLOAD = bytes(range(250)) * 4


def update_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def header(number: int = 1, size: int = len(PAYLOAD)) -> UpdateHeader:
    return UpdateHeader(
        incarnation=b"i" * 8,
        base=VersionId(epoch=1, number=number, digest=bytes([number % 256]) * 16),
        codec="eden(bits=1)",
        size=size,
        sha256=b"h" * 32,
        fingerprint=b"f" * 8,
        num_examples=10,
        steps_done=5,
        steps_planned=5,
    )


@pytest.fixture
def clock():
    return ManualClock(100.0)


@pytest.fixture
def make(tmp_path, clock):
    """Open the outbox of this test; opening it again closes the one before."""
    opened: list[Outbox] = []

    def open_again(*, max_bytes: int = 1 << 20, max_age_s: float = 1000.0) -> Outbox:
        while opened:
            opened.pop().close()
        opened.append(Outbox(tmp_path / "agent.db", max_bytes=max_bytes, max_age_s=max_age_s, clock=clock))
        return opened[0]

    yield open_again
    while opened:
        opened.pop().close()


def outcomes(box: Outbox) -> list[tuple[int, str, str]]:
    return [(int.from_bytes(row.update_id, "big"), row.outcome, row.reason) for row in box.ledger()]


def test_an_update_is_there_after_the_file_is_opened_again(make):
    """Header, payload and base survive; nothing is encoded twice."""
    made = make().put(update_id(1), header(), PAYLOAD, codec_state=b"state")
    box = make()
    assert box.entries() == (made,)
    assert made.header == header().pack()
    assert made.size == len(PAYLOAD)
    assert box.payload_range(update_id(1), 0, made.size) == PAYLOAD
    assert box.recall("codec_state") == b"state"


@pytest.mark.parametrize(
    ("start", "end"), [(0, 10), (500, 900), (990, 2000), (1000, 1000), (3000, 4000), (9, 3)]
)
def test_a_range_of_a_payload_is_what_slicing_gives(make, start, end):
    """Ranges beyond the end are cut, empty ones are empty."""
    box = make()
    box.put(update_id(1), header(), PAYLOAD)
    assert box.payload_range(update_id(1), start, end) == PAYLOAD[start:end]


def test_a_range_of_an_update_that_left_is_a_key_error(make):
    """The uploader learns that there is nothing to send."""
    with pytest.raises(KeyError):
        make().payload_range(update_id(1), 0, 1)


@pytest.mark.parametrize(("outcome", "reason"), [("done", ""), ("refused", "stale"), ("destroyed", "hash")])
def test_settling_lets_go_once(make, outcome, reason):
    """A second receipt for the same update changes nothing."""
    box = make()
    box.put(update_id(1), header(), PAYLOAD)
    assert box.settle(update_id(1), outcome, reason)
    assert not box.settle(update_id(1), outcome, reason)
    assert box.entries() == ()
    assert outcomes(box) == [(1, "created", ""), (1, outcome, reason)]


def test_an_unknown_update_is_not_settled(make):
    """A receipt for an id of another life is ignored."""
    box = make()
    assert not box.settle(update_id(9), "done")
    assert box.ledger() == ()
    with pytest.raises(ValueError, match="expired"):
        box.settle(update_id(9), "expired")


def test_the_oldest_gives_way_when_the_box_is_full(make):
    """The drop policy: oldest first, counted and in the ledger."""
    cost = len(PAYLOAD) + len(header().pack())
    box = make(max_bytes=2 * cost)
    for number in (1, 2, 3):
        box.put(update_id(number), header(number), PAYLOAD)
    assert [entry.update_id for entry in box.entries()] == [update_id(2), update_id(3)]
    assert outcomes(box)[2:] == [(1, "expired", "full"), (3, "created", "")]
    counts = box.counts()
    assert (counts.created, counts.expired, counts.waiting) == (3, 1, 2)
    assert counts.waiting_bytes == 2 * len(PAYLOAD)


def test_an_update_larger_than_the_box_is_an_error_and_drops_nothing(make):
    """Otherwise one bad setting would empty the box."""
    box = make(max_bytes=1500)
    box.put(update_id(1), header(), PAYLOAD)
    with pytest.raises(StorageError, match="max_bytes"):
        box.put(update_id(2), header(2, 2000), bytes(2000))
    assert [entry.update_id for entry in box.entries()] == [update_id(1)]


def test_what_an_update_leaves_out_takes_room_in_the_box(make, tmp_path):
    """Older updates give way to it, come with the update or there before; the status tells."""
    cost = len(PAYLOAD) + len(header().pack())
    box = make(max_bytes=3 * cost)
    for number in (1, 2):
        box.put(update_id(number), header(number), PAYLOAD)
    box.put(update_id(3), header(3), PAYLOAD, codec_state=bytes(cost))
    assert [entry.update_id for entry in box.entries()] == [update_id(2), update_id(3)]
    box.put(update_id(4), header(4), PAYLOAD)
    assert [entry.update_id for entry in box.entries()] == [update_id(3), update_id(4)]
    assert box.counts().residual_bytes == read_counts(tmp_path / "agent.db").residual_bytes == cost
    with pytest.raises(StorageError, match=f"{2 * cost + 1} of what it leaves out"):
        box.put(update_id(5), header(5), PAYLOAD, codec_state=bytes(2 * cost + 1))
    assert box.counts().residual_bytes == cost
    box.put(update_id(6), header(6), PAYLOAD, codec_state=b"")
    assert (box.counts().waiting, box.counts().residual_bytes) == (3, 0)


def test_the_same_id_twice_is_an_error_and_changes_nothing(make):
    """An update id is bound to one header and payload."""
    box = make()
    box.put(update_id(1), header(), PAYLOAD)
    with pytest.raises(StorageError):
        box.put(update_id(1), header(2), b"other")
    assert outcomes(box) == [(1, "created", "")]
    assert box.payload_range(update_id(1), 0, 5000) == PAYLOAD
    assert not box.made_update_for(header(2).base)


def test_age_counts_the_time_the_agent_ran(make, clock):
    """Time between two lives does not count: a device may boot without knowing the date."""
    box = make(max_age_s=1000.0)
    clock.advance(300)
    box.put(update_id(1), header(1), PAYLOAD)
    clock.advance(600)
    box.put(update_id(2), header(2), PAYLOAD)
    box = make(max_age_s=1000.0)
    clock.advance(399)
    assert box.expire_old() == []
    clock.advance(1)
    assert box.expire_old() == [update_id(1)]
    assert outcomes(box)[-1] == (1, "expired", "age")
    clock.advance(600)
    assert box.expire_old() == [update_id(2)]


def test_age_is_saved_now_and_then_for_the_case_of_a_crash(make, clock, tmp_path):
    """What a power cut may cost is an hour of age."""
    box = make()
    box.put(update_id(1), header(1), PAYLOAD)
    clock.advance(3600)
    box = make(max_age_s=10_000.0)
    clock.advance(4000)
    box.expire_old()
    with sqlite3.connect(tmp_path / "agent.db") as db:
        assert db.execute("SELECT age_s FROM outbox").fetchone() == (7600.0,)
    db.close()


def test_a_base_is_remembered_after_its_update_left(make):
    """One contribution per device and base, also after a restart; the digest is part of the base."""
    box = make()
    box.put(update_id(1), header(1), PAYLOAD)
    box.settle(update_id(1), "done")
    box = make()
    assert box.made_update_for(header(1).base)
    assert not box.made_update_for(replace(header(1).base, digest=b"x" * 16))


@pytest.mark.parametrize("asked", [False, True])
def test_an_older_base_after_a_newer_one_counts_too(make, asked):
    """A version that was overtaken may be trained on last; what is newer than all of them was not."""
    box = make()
    for number in (2, 1):
        if asked:
            assert not box.made_update_for(header(number).base)
        box.put(update_id(number), header(number), PAYLOAD)
    for again in (False, True):
        box = make() if again else box
        assert [number for number in (3, 2, 1, 0) if box.made_update_for(header(number).base)] == [2, 1]


def test_the_ledger_keeps_the_newest_rows_and_the_totals_count_all(make, monkeypatch):
    """Bounded rows, unbounded counts; sequence numbers go on."""
    monkeypatch.setattr(outbox_module, "LEDGER_ROWS", 10)
    box = make()
    for number in range(1, 21):
        box.put(update_id(number), header(number), b"")
        box.settle(update_id(number), "done")
    assert [row.sequence for row in box.ledger()] == list(range(31, 41))
    assert [row.sequence for row in box.ledger(2)] == [39, 40]
    assert (box.counts().created, box.counts().done) == (20, 20)
    assert read_counts(box._file.path) == box.counts()


def test_facts_are_kept_together_or_not_at_all(make):
    """A manifest and its order are of one commit."""
    box = make()
    box.remember_all({"manifest": b"m", "order": b"o"})
    box.remember("order", b"o2")
    box = make()
    assert (box.recall("manifest"), box.recall("order"), box.recall("none")) == (b"m", b"o2", None)


@pytest.mark.parametrize("fault", ["payload", "ledger"])
def test_a_put_that_fails_halfway_leaves_no_trace(make, tmp_path, fault):
    """Payload, row, ledger and base are one commit."""
    box = make()
    table = "outbox" if fault == "payload" else "ledger"
    box._db.execute(
        f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
    )
    with pytest.raises(StorageError, match="full"):
        box.put(update_id(1), header(), PAYLOAD, codec_state=b"s")
    assert box.entries() == ()
    assert box.ledger() == ()
    assert box.recall("codec_state") is None
    assert not box.made_update_for(header().base)
    box._db.execute("DROP TRIGGER full")
    box.put(update_id(1), header(), PAYLOAD)


_WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from test_outbox import PAYLOAD, header, update_id
from edge_agent.outbox import Outbox
from fl_protocol.clock import ManualClock
box = Outbox(Path(sys.argv[1]), max_bytes=1 << 30, max_age_s=1e9, clock=ManualClock())
for number in range(1, 10_000):
    box.put(update_id(number), header(number), PAYLOAD)
    if number % 2:
        box.settle(update_id(number), "done")
    print(number, flush=True)
"""


def test_kill_9_leaves_whole_updates_and_a_ledger_that_agrees(tmp_path, make):
    """Whatever ``put`` returned for is there; every created update waits or has an outcome."""
    here = os.path.dirname(__file__)
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path / "agent.db"), here], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    with writer.stdout as stdout:
        last = 0
        for line in stdout:
            last = int(line)
            if last == 40:
                writer.send_signal(signal.SIGKILL)
    assert writer.wait(30) == -signal.SIGKILL
    assert last >= 40
    box = make()
    created = {row.update_id for row in box.ledger() if row.outcome == "created"}
    settled = {row.update_id for row in box.ledger() if row.outcome == "done"}
    waiting = {entry.update_id for entry in box.entries()}
    assert {update_id(number) for number in range(1, last + 1)} <= created
    assert created == settled | waiting
    assert not settled & waiting
    assert all(box.payload_range(one, 0, 5000) == PAYLOAD for one in waiting)


def test_a_participation_is_three_commits(make):
    """An SD card wears out by syncs, and in WAL mode each commit is one: manifest, update, receipt."""
    box = make()
    said: list[str] = []
    box._db.set_trace_callback(said.append)
    for _ in range(2):
        box.remember_all({"manifest": b"m" * 900, "order": b"o"})
    box.expire_old()
    box.put(update_id(1), header(), PAYLOAD, codec_state=b"s")
    box.settle(update_id(1), "done")
    box._db.set_trace_callback(None)
    assert said.count("COMMIT") == 3
    assert box._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert box._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_it_wrote_it_does_not_read_again(make):
    """A thousand agents of one process would ask their file at every turn."""
    box = make()
    box.put(update_id(1), header(1), PAYLOAD)
    box.remember("manifest", b"m")
    said: list[str] = []
    box._db.set_trace_callback(said.append)
    assert box.made_update_for(header(1).base)
    assert box.recall("manifest") == b"m"
    assert box.payload_range(update_id(1), 0, len(PAYLOAD)) == PAYLOAD
    assert said == []
    assert box.payload_range(update_id(1), 0, len(PAYLOAD)) == PAYLOAD
    box._db.set_trace_callback(None)


def test_a_payload_goes_with_its_update(make):
    """What was put in last is at hand without the file, but not longer than it waits."""
    box = make()
    box.put(update_id(1), header(1), PAYLOAD)
    box.settle(update_id(1), "refused", "stale")
    with pytest.raises(KeyError):
        box.payload_range(update_id(1), 0, len(PAYLOAD))


def test_a_commit_that_failed_is_not_known_of(make):
    """Facts, bases, sizes and the ledger's numbers are asked of the file again, which has none of it."""
    box = make(max_bytes=3000)
    box.put(update_id(1), header(1), PAYLOAD)
    box.remember("fact", b"old")
    box._db.execute("CREATE TRIGGER full BEFORE INSERT ON facts BEGIN SELECT RAISE(FAIL, 'full'); END")
    with pytest.raises(StorageError, match="full"):
        box.remember("fact", b"new")
    with pytest.raises(StorageError, match="full"):
        box.put(update_id(2), header(2), PAYLOAD, codec_state=b"s")
    box._db.execute("DROP TRIGGER full")
    assert box.recall("fact") == b"old"
    assert not box.made_update_for(header(2).base)
    with pytest.raises(KeyError):
        box.payload_range(update_id(2), 0, len(PAYLOAD))
    box.put(update_id(3), header(3), PAYLOAD)
    assert [(row.sequence, row.update_id) for row in box.ledger()] == [(1, update_id(1)), (2, update_id(3))]
    assert len(box.entries()) == 2


def test_a_file_of_a_newer_agent_is_left_alone(make, tmp_path):
    """After a downgrade the box is not taken for damaged."""
    make()._db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="newer agent"):
        make()
    assert (tmp_path / "agent.db").exists()


def test_boxes_of_one_file_know_nothing_of_each_other(tmp_path, clock):
    """Each has its own ledger, facts, bases, bounds and age; the file outlives them."""
    file = OutboxFile(tmp_path / "agents.db")
    one, two = (Outbox(file, max_bytes=1 << 20, max_age_s=1e6, clock=clock, box=box) for box in (1, 2))
    one.put(update_id(1), header(1), PAYLOAD)
    one.remember("k", b"one")
    two.remember("k", b"two")
    assert (one.recall("k"), two.recall("k")) == (b"one", b"two")
    assert (len(one.entries()), len(two.entries())) == (1, 0)
    assert one.made_update_for(header(1).base)
    assert not two.made_update_for(header(1).base)
    assert not two.settle(update_id(1), "done")
    two.put(update_id(2), header(1), PAYLOAD)
    assert [row.sequence for row in two.ledger()] == [1]
    assert one.settle(update_id(1), "done")
    assert (one.counts().done, two.counts().waiting) == (1, 1)
    one.close()
    assert len(two.entries()) == 1
    file.close()


def test_a_file_with_one_box_only_is_taken_over_whole(tmp_path, clock):
    """Format 2 knew no boxes: what waited waits on, and its ledger, totals, bases and facts stay."""
    path = tmp_path / "agent.db"
    with closing(sqlite3.connect(path)) as db:
        old = outbox_file._SCHEMA + outbox_file.DEVICE_STATES
        db.executescript(f"{old} PRAGMA application_id={0x4C696368}; PRAGMA user_version=2;")
        base, packed = header(1).base, header(1).pack()
        key = (base.epoch, base.number, base.digest)
        db.execute(
            "INSERT INTO outbox VALUES (?, 7, ?, ?, ?, ?, ?, 5.0, ?)",
            (update_id(1), packed, *key, len(PAYLOAD), PAYLOAD),
        )
        for sequence in (6, 7):
            db.execute("INSERT INTO ledger VALUES (?, ?, 'created', '')", (sequence, update_id(sequence)))
        db.execute("INSERT INTO totals VALUES ('created', 7)")
        db.execute("INSERT INTO bases VALUES (?, ?, ?, 7)", key)
        db.execute("INSERT INTO facts VALUES ('fact', ?)", (b"kept",))
        db.execute("INSERT INTO device_states VALUES (?, 7, ?)", (b"a" * 32, b"state"))
        db.commit()
    box = Outbox(path, max_bytes=1 << 20, max_age_s=1e6, clock=clock)
    assert [entry.update_id for entry in box.entries()] == [update_id(1)]
    assert box.payload_range(update_id(1), 0, len(PAYLOAD)) == PAYLOAD
    assert box.made_update_for(base)
    assert box.recall("fact") == b"kept"
    assert box.device_state(b"a" * 32).content == b"state"
    assert box.settle(update_id(1), "done")
    assert [row.sequence for row in box.ledger()] == [6, 7, 8]
    assert (box.counts().created, box.counts().done) == (7, 1)
    box.close()
