"""Durable files: whole at any crash, on a disk that forgets what was not synced."""

import itertools
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_disk import PowerCut, SimulatedDisk

from fl_io.disk import DISK, RealDisk, make_folder, sweep_unfinished, write_file
from fl_protocol.errors import StorageError

SEEDS = range(40)


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    """The plain case on the real disk."""
    path = tmp_path / "file"
    write_file(path, b"old", purpose="test")
    write_file(path, b"new", purpose="test")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_file_is_never_readable_by_others(tmp_path):
    """The mode holds from the first byte on."""
    write_file(tmp_path / "key", b"secret", mode=0o600, purpose="test")
    assert stat.S_IMODE(os.stat(tmp_path / "key").st_mode) == 0o600


def test_a_new_folder_is_durable_with_all_above_it(tmp_path):
    """Each new name is synced in the folder above, and the lowest once more if it was there already."""

    class Noting(RealDisk):
        """Notes the folders that were synced."""

        def __init__(self):
            self.synced = []

        def sync_directory(self, path):
            self.synced.append(path)
            super().sync_directory(path)

    for expected in ([tmp_path, tmp_path / "a", tmp_path / "a" / "b"], [tmp_path / "a" / "b"]):
        disk = Noting()
        make_folder(tmp_path / "a" / "b" / "c", disk=disk, purpose="test")
        assert disk.synced == expected
    write_file(tmp_path / "file", b"", purpose="test")
    with pytest.raises(StorageError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "below", purpose="test")


def test_what_a_crash_left_unfinished_is_swept(tmp_path):
    """The temporary file of a write that was cut off, and nothing else."""
    write_file(tmp_path / "whole", b"x", purpose="test")
    (tmp_path / ".hidden").write_bytes(b"")
    disk = SimulatedDisk(cut=3)
    with pytest.raises(PowerCut):
        write_file(tmp_path / "cut", b"x", disk=disk, purpose="test")
    assert len(list(tmp_path.iterdir())) == 3
    assert sweep_unfinished(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "whole"]


def test_bytes_are_written_at_their_offset(tmp_path):
    """Chunks of an upload arrive in any order."""
    DISK.write_at(tmp_path / "part", 5, b"world")
    DISK.write_at(tmp_path / "part", 0, b"hello")
    DISK.sync(tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b"helloworld"
    DISK.remove(tmp_path / "part")
    DISK.remove(tmp_path / "part")


def test_a_file_that_was_written_survives_every_power_cut(tmp_path):
    """On return the file is the new one, for good."""
    for seed in SEEDS:
        disk, path = SimulatedDisk(seed=seed), tmp_path / str(seed)
        write_file(path, b"old content", disk=disk, purpose="test")
        write_file(path, b"new content", disk=disk, purpose="test")
        disk.crash()
        assert path.read_bytes() == b"new content"


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_power_cut_at_any_moment_leaves_the_old_file_or_the_new(tmp_path, cut):
    """Between any two operations, whatever the disk has kept by itself."""
    seen = set()
    for seed in SEEDS:
        disk, path = SimulatedDisk(seed=seed), tmp_path / str(seed)
        write_file(path, b"old content", disk=disk, purpose="test")
        disk.cut = disk.operations + cut
        with pytest.raises(PowerCut):
            write_file(path, b"new content", disk=disk, purpose="test")
        disk.crash()
        seen.add(path.read_bytes())
    assert seen <= {b"old content", b"new content"}
    assert b"old content" in seen


@pytest.mark.parametrize("skipped", ["sync:2", "sync_directory:2"])
def test_a_dropped_sync_is_seen(tmp_path, skipped):
    """The simulated disk is worth something only if it turns red where a sync is missing."""
    outcomes = set()
    for seed in SEEDS:
        disk, path = SimulatedDisk(seed=seed, skip={skipped}), tmp_path / str(seed)
        write_file(path, b"old content", disk=disk, purpose="test")
        write_file(path, b"new content", disk=disk, purpose="test")
        disk.crash()
        outcomes.add(path.read_bytes())
    assert outcomes - {b"new content"}


@pytest.mark.parametrize("failing", ["write:2", "sync:2", "rename:2"])
def test_a_full_disk_leaves_the_old_file_and_says_where(tmp_path, failing):
    """The error names the file and has a hint; no temporary file is left."""
    disk, path = SimulatedDisk(fail={failing}), tmp_path / "file"
    write_file(path, b"old", disk=disk, purpose="test")
    with pytest.raises(StorageError, match="No space left") as caught:
        write_file(path, b"new", disk=disk, purpose="test")
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_read_only_folder_is_a_storage_error_too(tmp_path):
    """Even where the clean-up fails as well."""
    with pytest.raises(StorageError):
        write_file(tmp_path / "missing" / "file", b"x", purpose="test")
    disk = SimulatedDisk(fail={"write:1", "remove:1"})
    with pytest.raises(StorageError):
        write_file(tmp_path / "file", b"x", disk=disk, purpose="test")


def test_unsynced_content_may_be_old_empty_short_or_whole(tmp_path):
    """All that a real disk does, at a seeded choice."""
    seen = set()
    for seed in SEEDS:
        disk, path = SimulatedDisk(seed=seed), tmp_path / str(seed)
        write_file(path, b"old", disk=disk, purpose="test")
        disk.write(path, b"abcdef")
        disk.crash()
        seen.add(path.read_bytes())
    assert {b"old", b"", b"abcdef"} < seen
    assert seen & {b"a", b"ab", b"abc", b"abcd", b"abcde"}


def test_a_removal_without_a_sync_may_come_undone(tmp_path):
    """A file that was unlinked can be back after a crash; after a sync it cannot."""
    back = []
    for seed in SEEDS:
        disk, path = SimulatedDisk(seed=seed), tmp_path / str(seed)
        write_file(path, b"x", disk=disk, purpose="test")
        disk.remove(path)
        disk.crash()
        back.append(path.exists())
        disk.remove(path)
        disk.sync_directory(tmp_path)
        disk.crash()
        assert not path.exists()
    assert True in back
    assert False in back


def test_files_of_others_are_left_alone(tmp_path, simulated_disk):
    """A database in the same folder goes its own way; a file from before is durable as it stands."""
    (tmp_path / "db").write_bytes(b"database")
    (tmp_path / "before").write_bytes(b"old")
    simulated_disk.write(tmp_path / "before", b"new")
    simulated_disk.sync(tmp_path / "before")
    simulated_disk.crash()
    assert (tmp_path / "db").read_bytes() == b"database"
    assert (tmp_path / "before").read_bytes() == b"new"


def test_the_same_seed_crashes_alike(tmp_path):
    """A failure found by a seed can be looked at again."""

    def run(folder, seed):
        folder.mkdir()
        disk = SimulatedDisk(seed=seed)
        for name in "abc":
            disk.write(folder / name, name.encode() * 50)
        disk.sync(folder / "a")
        disk.rename(folder / "a", folder / "z")
        disk.crash()
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    for seed in range(10):
        assert run(tmp_path / f"1-{seed}", seed) == run(tmp_path / f"2-{seed}", seed)


@given(st.lists(st.binary(max_size=64), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 2**32))
def test_any_sequence_of_writes_leaves_one_of_them_whole(tmp_path_factory, contents, cut, seed):
    """What a crash leaves is the last finished write, or the one under way."""
    path = tmp_path_factory.mktemp("disk") / "file"
    disk = SimulatedDisk(seed=seed, cut=cut)
    finished = itertools.count()
    done = -1
    try:
        for content in contents:
            write_file(path, content, disk=disk, purpose="test")
            done = next(finished)
    except PowerCut:
        pass
    disk.crash()
    left = path.read_bytes() if path.exists() else None
    allowed = [contents[done] if done >= 0 else None, *contents[done + 1 : done + 2]]
    assert left in allowed
