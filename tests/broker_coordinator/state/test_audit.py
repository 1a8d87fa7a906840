"""The audit: it is silent where all is well, and nothing that is wrong passes it."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from broker_coordinator.books.audit import audit
from edge_agent.outbox import Outbox
from fl_protocol.clock import ManualClock
from fl_protocol.errors import StorageError


@pytest.fixture
def agent(tmp_path):
    """``agent(name, created=..., done=..., refused=..., expired=..., outbox=..., epoch=...)``: an agent's
    ledger, as it writes it."""

    def write(name: str, *, created=(), done=(), refused=(), expired=(), outbox=(), epoch=1):
        folder = tmp_path / name
        folder.mkdir()
        with closing(sqlite3.connect(folder / "agent.db")) as connection, connection:
            connection.execute(
                "CREATE TABLE ledger"
                " (sequence INTEGER PRIMARY KEY, update_id BLOB, outcome TEXT, reason TEXT)"
            )
            connection.execute("CREATE TABLE outbox (update_id BLOB PRIMARY KEY)")
            connection.execute("CREATE TABLE bases (epoch INTEGER, number INTEGER, sequence INTEGER)")
            words = {"created": created, "done": done, "refused": refused, "expired": expired}
            for outcome, ids in words.items():
                rows = [(update_id, outcome) for update_id in ids]
                connection.executemany(
                    "INSERT INTO ledger (update_id, outcome, reason) VALUES (?, ?, '')", rows
                )
            connection.executemany("INSERT INTO outbox VALUES (?)", [(update_id,) for update_id in outbox])
            connection.execute("INSERT INTO bases SELECT ?, sequence, sequence FROM ledger", (epoch,))
        return folder

    return write


@pytest.fixture
def two(history):
    """Two versions of three updates, and one that waits; the updates that were accepted."""
    updates = []
    for _ in range(2):
        updates += history.take(3, codec="eden(bits=1)")
        history.close()
    history.updates = updates + history.take(1)
    return history


def _break(history, statement: str, *values) -> None:
    """Change the journal behind the coordinator's back."""
    with closing(sqlite3.connect(history.folder / "coordinator.db")) as connection, connection:
        assert connection.execute(statement, values).rowcount


def test_a_sound_state_balances(two, agent):
    """Every row in one state, every version bit for bit, every ledger in agreement."""
    ids = [update.update_id for update in two.updates]
    folder = agent("a", created=ids, done=ids[:-1], outbox=ids[-1:])
    report = audit(two.folder, [folder])
    assert report.faults == ()
    assert report.balanced
    assert (report.accepted, report.folded, report.waiting, report.quarantined) == (7, 6, 1, 0)
    assert (report.versions_checked, report.versions_ok) == (2, 2)
    assert (report.lost, report.duplicated, report.receipt_pending) == (0, 0, 1)
    body = report.to_json()
    assert body["balanced"] is True
    assert body["replay_ok"] is True
    assert body["faults"] == []


def test_a_journal_row_that_is_deleted_is_one_lost_update(two, agent):
    """The device was told it is done, and there is no row: lost, and its version does not replay."""
    ids = [update.update_id for update in two.updates]
    folder = agent("a", created=ids, done=ids)
    _break(two, "DELETE FROM updates WHERE accept_seq = 2")
    report = audit(two.folder, [folder])
    assert (report.lost, report.replay_ok, report.balanced) == (1, False, False)
    assert any("missing from the journal" in fault for fault in report.faults)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE updates SET weight = x'0000803f' WHERE accept_seq = 1",
        "UPDATE updates SET scale = x'0000003f' WHERE accept_seq = 1",
        "UPDATE updates SET norm = x'0000003f' WHERE accept_seq = 1",
        "UPDATE updates SET staleness = 50 WHERE accept_seq = 1",
        "UPDATE updates SET device = 'another' WHERE accept_seq = 1",
        "UPDATE updates SET payload = zeroblob(size) WHERE accept_seq = 1",
        "UPDATE updates SET stored = 'dropped', payload = NULL WHERE accept_seq = 1",
        "UPDATE versions SET digest = randomblob(32) WHERE number = 1",
        "UPDATE rules SET text = replace(text, '\"server_lr\":1.0', '\"server_lr\":0.5')",
    ],
)
def test_whatever_a_version_is_made_from_is_checked(two, statement):
    """Any scalar, payload, rule or digest that is not the one that was used: the replay says so."""
    _break(two, statement)
    report = audit(two.folder)
    assert not report.replay_ok
    assert not report.balanced


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE updates SET state = 'waiting', version = NULL WHERE accept_seq = 1", "waits, although"),
        ("UPDATE updates SET version = 2 WHERE accept_seq = 1", "outside the range"),
        ("UPDATE updates SET version = 9 WHERE accept_seq = 1", "which is not there"),
        ("UPDATE updates SET state = 'quarantined' WHERE accept_seq = 1", "quarantined, and folded"),
        ("UPDATE versions SET updates = 2 WHERE number = 1", "made from 2 updates"),
    ],
)
def test_a_row_in_a_wrong_state_is_a_fault(two, statement, sentence):
    """Each update is waiting, folded or quarantined, and nothing in between."""
    _break(two, statement)
    report = audit(two.folder)
    assert any(sentence in fault for fault in report.faults)
    assert not report.balanced


def test_an_update_counted_twice_is_seen(two, agent):
    """Twice in the journal (its unique indices gone), or created twice by agents."""
    with closing(sqlite3.connect(two.folder / "coordinator.db")) as connection, connection:
        connection.execute("DROP INDEX updates_once")
    _break(
        two,
        "UPDATE updates SET device = (SELECT device FROM updates WHERE accept_seq = 1) WHERE accept_seq = 2",
    )
    first = two.updates[0].update_id
    report = audit(two.folder, [agent("a", created=[first]), agent("b", created=[first])])
    assert report.duplicated == 2
    assert not report.balanced


def test_a_word_that_contradicts_the_journal_is_a_fault(two, agent):
    """Refused to the device, and counted all the same."""
    report = audit(two.folder, [agent("a", refused=[two.updates[0].update_id])])
    assert any("refused, and are in the journal" in fault for fault in report.faults)


def test_a_state_file_that_was_changed_is_a_fault(two):
    """One bit of a model's file."""
    path = two.states.path(1, 1)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    report = audit(two.folder)
    assert not report.replay_ok


def test_quarantined_updates_balance(two):
    """They are accepted, and accounted for."""
    assert not two.open.add(replace(two.accept(two.next()), payload=b""))
    two.close()
    report = audit(two.folder)
    assert (report.accepted, report.folded, report.quarantined) == (8, 7, 1)
    assert report.balanced


def test_a_higher_epoch_replays(two):
    """After ``recover`` the version is the last one with another name."""
    state = two.open.state.reopened(two.store.open_epoch().epoch)
    two.version = two.commit(state, through_seq=two.version.through_seq, updates=0, closed_by="recover")
    two.open = two.reopen()
    two.take(1)
    assert two.close().epoch == 2
    report = audit(two.folder)
    assert (report.versions_checked, report.balanced) == (4, True)


def test_a_real_outbox_is_read_while_it_is_open(two, tmp_path):
    """The agent's own file, as the agent writes it: one settled, one that waits for its receipt."""
    with closing(
        Outbox(tmp_path / "agent.db", max_bytes=1 << 20, max_age_s=1e6, clock=ManualClock())
    ) as outbox:
        for update in two.updates[-2:]:
            outbox.put(update.update_id, update.header, update.payload)
        outbox.settle(two.updates[-2].update_id, "done", "")
        report = audit(two.folder, [tmp_path])
    assert (report.balanced, report.lost, report.receipt_pending, report.agents) == (True, 0, 1, 1)


def test_a_folder_without_an_agent_is_an_error(two, tmp_path):
    """A mistyped folder must not look like an agent that lost nothing."""
    with pytest.raises(StorageError, match="no agent has run"):
        audit(two.folder, [tmp_path])


def test_the_books_of_devices_balance(two, agent):
    """Every update that a device made is done, refused, expired, or waits: each in one place, and counted."""
    ids = [update.update_id for update in two.updates]
    others = [bytes([number]) * 16 for number in range(3)]
    folder = agent(
        "a", created=ids + others, done=ids, refused=others[:1], expired=others[1:2], outbox=others[2:]
    )
    report = audit(two.folder, [folder])
    assert report.balanced, report.faults
    assert (report.created, report.done, report.refused_to_devices) == (10, 7, 1)
    assert (report.expired, report.outbox, report.receipt_pending) == (1, 1, 0)


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ({}, "nothing became of them"),
        ({"done": 1, "outbox": 1}, "more than one outcome"),
        ({"done": 1, "refused": 1}, "more than one outcome"),
    ],
)
def test_an_update_that_is_nowhere_or_twice_on_its_device_is_a_fault(two, agent, places, sentence):
    """Created and gone without a word; or done, and waiting still."""
    ids = [two.updates[0].update_id]
    report = audit(two.folder, [agent("a", created=ids, **dict.fromkeys(places, ids))])
    assert any(sentence in fault for fault in report.faults)
    assert not report.balanced


def test_what_a_restored_backup_does_not_know_is_given_up_not_lost(two, agent):
    """Done in epoch 1, not in the store that epoch 2 began with: said, and no fault of anybody's."""
    two.store.open_epoch()
    gone = bytes(16)
    old = audit(two.folder, [agent("old", created=[gone], done=[gone], epoch=1)])
    assert (old.given_up, old.lost, old.balanced) == (1, 0, True)
    new = audit(two.folder, [agent("new", created=[gone], done=[gone], epoch=2)])
    assert (new.given_up, new.lost, new.balanced) == (0, 1, False)


def test_a_quarantine_without_a_reason_is_a_fault(two):
    """Whoever looks for an update finds out why it was not counted."""
    assert not two.open.add(replace(two.accept(two.next()), payload=b""))
    two.close()
    _break(two, "UPDATE updates SET reason = '' WHERE state = 'quarantined'")
    assert any("without a reason" in fault for fault in audit(two.folder).faults)
