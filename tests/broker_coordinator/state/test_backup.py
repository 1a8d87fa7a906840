"""Backup and export: what leaves the state folder is whole, and right."""

import numpy as np
import pytest

from broker_coordinator.books import backup
from broker_coordinator.books.audit import audit
from broker_coordinator.books.backup import back_up
from broker_coordinator.books.export import export_version
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.codec import decode_model, encode_model
from fl_protocol.errors import ConfigError, StorageError
from models.runtime import join_flat


@pytest.fixture
def running(history):
    """Two versions, a payload in a file, and an update that waits."""
    for _ in range(2):
        history.take(2)
        history.open.add(history.accept(history.next(), as_file=True))
        history.close()
    history.take(1)
    (history.folder / "coordinator.key").write_bytes(b"k" * 32)
    (history.folder / "coordinator.key").chmod(0o600)
    return history


def test_a_backup_is_a_state_that_goes_on(running, begin, tmp_path):
    """Taken while the store is open, it audits clean, and continues on the same bits."""
    done = back_up(running.folder, tmp_path / "copy")
    assert done.version == 2
    assert audit(tmp_path / "copy").balanced
    again = begin(tmp_path / "copy")
    again.numbers = running.numbers
    for history in (running, again):
        history.take(1)
    assert running.close().digest == again.close().digest
    key = tmp_path / "copy" / "coordinator.key"
    assert (key.read_bytes(), key.stat().st_mode & 0o777) == (b"k" * 32, 0o600)


def test_a_damaged_key_is_not_copied_as_if_it_were_one(running, tmp_path):
    """A backup that no coordinator starts from is worse than an error: it takes the place of a good one."""
    (running.folder / "coordinator.key").write_bytes(b"k" * 29)
    with pytest.raises(ConfigError, match="29 bytes"):
        back_up(running.folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_terms_of_a_backup_are_above_those_of_the_original(running, tmp_path):
    """Devices may have obeyed commands of any term since: they must obey the restored coordinator too."""
    back_up(running.folder, tmp_path / "copy")
    for _ in range(50):
        newest = running.store.take_office().term
    copy = SqliteStore.open(tmp_path / "copy")
    assert copy.take_office().term > newest
    copy.close()


def test_a_backup_goes_into_a_new_folder_only(running, tmp_path):
    """Nothing is mixed with what is there."""
    back_up(running.folder, tmp_path / "copy")
    with pytest.raises(StorageError, match="not an empty folder"):
        back_up(running.folder, tmp_path / "copy")


def test_a_file_that_retention_removed_meanwhile_starts_it_again(running, tmp_path, monkeypatch):
    """The copy of the database is taken anew until its files are all there."""
    needed, calls = backup._needed, []

    def slow(folder, copy):
        found = needed(folder, copy)
        if not calls:
            ids = running.store.drop_payloads(1)
            running.payloads.discard(ids)
            running.states.remove_below(1)
        calls.append(found)
        return found

    monkeypatch.setattr(backup, "_needed", slow)
    back_up(running.folder, tmp_path / "copy")
    assert len(calls) == 2
    assert audit(tmp_path / "copy").balanced


def test_a_backup_that_broke_off_does_not_open(running, tmp_path):
    """Its database comes last: without it the state files alone are refused."""
    running.states.path(1, 2).unlink()
    with pytest.raises(StorageError, match="is missing"):
        back_up(running.folder, tmp_path / "copy")
    assert not (tmp_path / "copy" / "coordinator.db").exists()


def test_an_export_is_the_model_by_name(running, tmp_path):
    """Master weights to the bit, or what devices decode; the same twice."""
    layout = running.rules.layout
    master = running.open.state.master
    done = export_version(running.store, running.folder, tmp_path / "w.npz")
    assert (done.version.number, done.parameters) == (2, layout.size)
    with np.load(tmp_path / "w.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["b", "w"]
        assert join_flat(dict(arrays), layout).tobytes() == master.tobytes()
    first = (tmp_path / "w.npz").read_bytes()
    export_version(running.store, running.folder, tmp_path / "w.npz", number=2)
    assert (tmp_path / "w.npz").read_bytes() == first
    export_version(running.store, running.folder, tmp_path / "p.npz", published=True)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as arrays:
        published = decode_model(encode_model(master, layout), layout)
        assert join_flat(dict(arrays), layout).tobytes() == published.tobytes()


def test_what_is_not_kept_is_not_exported(running, tmp_path):
    """No such version, no such blob: a hint, and no file."""
    with pytest.raises(StorageError, match="no version 9"):
        export_version(running.store, running.folder, tmp_path / "w.npz", number=9)
    (running.folder / "blobs" / running.version.published_sha256.hex()).unlink()
    with pytest.raises(StorageError, match="are not kept"):
        export_version(running.store, running.folder, tmp_path / "w.npz", published=True)
    assert not (tmp_path / "w.npz").exists()
