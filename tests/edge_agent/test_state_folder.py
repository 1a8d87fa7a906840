"""The state folder: one holder, a lasting identity, and work goes on after damage."""

import json
import os
import resource
import sqlite3
import subprocess
import sys

import pytest
from simulated_disk import PowerCut, SimulatedDisk

from edge_agent.sqlite_file import is_damage
from edge_agent.state_folder import StateFolder
from fl_protocol.clock import ManualClock
from fl_protocol.errors import StorageError
from hil.simulate.memory_disk import Contents, MemoryDisk


def open_outbox(folder):
    return folder.open_outbox(max_bytes=1 << 20, max_age_s=1e6, clock=ManualClock())


def test_the_identity_lasts(tmp_path):
    """Incarnation and seed are random, and the same in every life."""
    with StateFolder(tmp_path / "a") as first, StateFolder(tmp_path / "b") as other:
        identity = first.incarnation, first.device_seed
        assert first.incarnation != other.incarnation
        assert first.device_seed != other.device_seed
    with StateFolder(tmp_path / "a") as again:
        assert (again.incarnation, again.device_seed) == identity
        assert again.quarantined == []
    assert (tmp_path / "a" / "identity.json").stat().st_mode & 0o077 == 0


def test_a_full_disk_does_not_keep_an_agent_from_its_folder(tmp_path):
    """It may have an update to deliver, which needs no room."""
    with StateFolder(tmp_path) as folder:
        identity = folder.incarnation
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with StateFolder(tmp_path) as folder:
            assert folder.incarnation == identity
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_one_agent_at_a_time(tmp_path):
    """A second agent is told which process holds the folder."""
    with StateFolder(tmp_path):
        with pytest.raises(StorageError, match=f"process {os.getpid()}"):
            StateFolder(tmp_path)
        program = "import sys; from pathlib import Path; from edge_agent.state_folder import StateFolder\n"
        program += "try: StateFolder(Path(sys.argv[1]))\nexcept Exception as e: print(type(e).__name__)"
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "StorageError"
    StateFolder(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    """The message names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/state"):
        StateFolder(tmp_path / "file" / "state")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"incarnation": "zz"}', b"\xff", b"[1]", b"null"])
def test_a_damaged_identity_is_set_aside(tmp_path, content):
    """A new incarnation, and the operator is told."""
    (tmp_path / "identity.json").write_bytes(content)
    with StateFolder(tmp_path) as folder:
        assert len(folder.incarnation) == 8
        assert "identity.json was damaged" in folder.quarantined[0]
        assert json.loads((tmp_path / "identity.json").read_text())["incarnation"] == folder.incarnation.hex()
    assert [file.read_bytes() for file in (tmp_path / "quarantine").iterdir()] == [content]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "scribbled", "foreign"])
def test_a_damaged_outbox_is_set_aside_and_work_goes_on(tmp_path, damage):
    """The history is lost, so the folder is another incarnation from now on."""
    with StateFolder(tmp_path) as folder:
        box = open_outbox(folder)
        for number in range(200):
            box.remember(f"fact {number}", bytes(500))
        box.close()
        before = folder.incarnation
    database = tmp_path / "agent.db"
    content = bytearray(database.read_bytes())
    if damage == "garbage":
        content[:] = b"no database at all" * 1000
    elif damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "scribbled":
        content[4096:8192] = b"\xa5" * 4096
    else:
        database.unlink()
        db = sqlite3.connect(database)
        db.execute("CREATE TABLE outbox (other INTEGER)")
        db.commit()
        db.close()
        content[:] = database.read_bytes()
    database.write_bytes(content)
    with StateFolder(tmp_path) as folder:
        box = open_outbox(folder)
        assert folder.incarnation != before
        assert "agent.db was damaged" in folder.quarantined[0]
        box.remember("fact", b"new")
        box.close()
        again = folder.incarnation
    with StateFolder(tmp_path) as folder:
        box = open_outbox(folder)
        assert (folder.incarnation, folder.quarantined, box.recall("fact")) == (again, [], b"new")
        box.close()
    assert any(file.read_bytes() == content for file in (tmp_path / "quarantine").iterdir())


@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_while_the_identity_is_written_leaves_one_or_none(tmp_path, seed):
    """Whatever moment it comes at; and the identity that a life went on with is never lost."""
    cut = 1
    while True:
        disk = SimulatedDisk(seed=seed, cut=cut)
        path = tmp_path / str(cut)
        try:
            with StateFolder(path, disk=disk) as folder:
                went_on_with = folder.incarnation
        except PowerCut:
            went_on_with = None
        disk.crash()
        with StateFolder(path, disk=disk) as folder:
            assert folder.quarantined == []
            assert went_on_with in (None, folder.incarnation)
        if went_on_with is not None:
            break
        cut += 1
    assert cut == 6


def test_an_outbox_that_is_gone_makes_a_new_incarnation(tmp_path):
    """Its ledger is as lost as a damaged one; a first start, even one cut off, loses nothing."""
    with StateFolder(tmp_path) as folder:
        first = folder.incarnation
        open_outbox(folder).close()
        assert folder.incarnation == first
    (tmp_path / "agent.db").unlink()
    with StateFolder(tmp_path) as folder:
        open_outbox(folder).close()
        second = folder.incarnation
    with StateFolder(tmp_path) as folder:
        assert first != folder.incarnation == second


def test_a_crash_while_a_damaged_outbox_is_set_aside_keeps_no_old_name(tmp_path, monkeypatch):
    """An empty ledger under the old incarnation would be a history with a hole."""
    with StateFolder(tmp_path) as folder:
        before = folder.incarnation
        open_outbox(folder).close()
    (tmp_path / "agent.db").write_bytes(b"no database" * 1000)
    with StateFolder(tmp_path) as folder:
        monkeypatch.setattr(StateFolder, "_quarantine", lambda *_: None)
        with pytest.raises(StorageError):
            open_outbox(folder)
        monkeypatch.undo()
    with StateFolder(tmp_path) as folder:
        assert folder.incarnation != before


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        (sqlite3.SQLITE_CORRUPT, True),
        (sqlite3.SQLITE_IOERR_READ, True),
        (sqlite3.SQLITE_IOERR_SHORT_READ, True),
        (sqlite3.SQLITE_IOERR_WRITE, False),
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_BUSY, False),
        (sqlite3.SQLITE_READONLY, False),
    ],
)
def test_only_what_another_file_would_mend_is_damage(code, damage):
    """A bad sector is; a full, busy or read-only disk is not: setting files aside would lose a history."""
    cause = sqlite3.OperationalError("disk I/O error")
    cause.sqlite_errorcode = code
    error = StorageError("the outbox")
    error.__cause__ = cause
    assert is_damage(error) is damage


def test_a_checkpoint_goes_from_the_disk_that_it_is_on(tmp_path):
    """A device with a disk in memory removes nothing from this machine's."""
    real = tmp_path / "checkpoint"
    real.write_bytes(b"another's")
    disk = MemoryDisk(Contents())
    with StateFolder(tmp_path, disk=disk) as folder:
        disk.write(folder.checkpoint, b"ours")
        folder.drop_checkpoint()
        folder.drop_checkpoint()
        assert not disk.exists(folder.checkpoint)
    assert real.exists()
