"""What every disk does, the one in memory that virtual devices have included."""

import hashlib
from pathlib import Path

import pytest

from fl_io.disk import RealDisk, make_folder, sweep_unfinished, write_file
from hil.simulate.memory_disk import Contents, MemoryDisk


@pytest.fixture(params=["real", "memory"])
def disk(request):
    """One disk of each kind."""
    return RealDisk() if request.param == "real" else MemoryDisk(Contents())


@pytest.fixture
def folder(tmp_path, disk):
    """A folder on it."""
    make_folder(tmp_path / "state", purpose="test.folder", disk=disk)
    return tmp_path / "state"


def test_what_is_written_is_read(disk, folder):
    """Whole, in part, beyond the end, and its digest and size."""
    write_file(folder / "a", b"0123456789", purpose="test.file", disk=disk)
    assert disk.read(folder / "a") == b"0123456789"
    assert disk.read(folder / "a", 3, 4) == b"3456"
    assert disk.read(folder / "a", 8) == b"89"
    assert disk.read(folder / "a", size=100) == b"0123456789"
    assert disk.size(folder / "a") == 10
    assert disk.sha256(folder / "a") == hashlib.sha256(b"0123456789").digest()


def test_pieces_are_put_in_their_places(disk, folder):
    """In any order; a piece may overwrite."""
    disk.write_at(folder / "part", 4, b"4567")
    disk.write_at(folder / "part", 0, b"01")
    disk.write_at(folder / "part", 2, b"23xx")
    disk.sync(folder / "part")
    assert disk.read(folder / "part") == b"0123xx67"


def test_a_name_is_replaced_and_removed(disk, folder):
    """``rename`` replaces what is there; ``remove`` of nothing is no error."""
    disk.write(folder / "a", b"old")
    disk.write(folder / "b", b"new")
    disk.rename(folder / "b", folder / "a")
    assert disk.read(folder / "a") == b"new"
    assert not disk.exists(folder / "b")
    disk.remove(folder / "a")
    disk.remove(folder / "a")
    assert disk.names(folder) == []


@pytest.mark.parametrize("verb", ["read", "sha256", "size"])
def test_what_is_not_there_is_not_found(disk, folder, verb):
    """As the operating system says it."""
    with pytest.raises(FileNotFoundError):
        getattr(disk, verb)(folder / "nothing")


def test_folders_hold_names_and_go_with_them(disk, folder):
    """Names are of that folder alone; a folder is a name too."""
    disk.add_folder(folder / "sub", mode=0o750)
    disk.add_folder(folder / "sub")
    disk.write(folder / "sub" / "inner", b"1")
    disk.write(folder / "outer", b"2")
    assert sorted(disk.names(folder)) == ["outer", "sub"]
    assert disk.names(folder / "sub") == ["inner"]
    assert disk.is_folder(folder / "sub")
    assert not disk.is_folder(folder / "outer")
    assert disk.exists(folder / "sub")
    disk.remove_folder(folder / "sub")
    assert not disk.exists(folder / "sub")
    assert not disk.exists(folder / "sub" / "inner")
    assert disk.read(folder / "outer") == b"2"


def test_what_a_crash_left_is_swept(disk, folder):
    """Temporary files only; a folder that is not there has none."""
    disk.write(folder / ".a.0123abcd.tmp", b"")
    disk.write(folder / "a", b"")
    assert sweep_unfinished(folder, disk=disk) == 1
    assert disk.names(folder) == ["a"]
    assert sweep_unfinished(Path(folder, "none"), disk=disk) == 0


def test_equal_contents_are_one_object():
    """On all disks of one fleet: a thousand devices hold the model once. Old contents are let go of."""
    contents = Contents(most=2)
    first, second = MemoryDisk(contents), MemoryDisk(contents)
    for disk in (first, second):
        write_file(Path("/device/model"), bytes(5000), purpose="test.file", disk=disk)
    assert first.read(Path("/device/model")) is second.read(Path("/device/model"))
    for number in range(5):
        first.write(Path("/device/other"), bytes([number]) * 5000)
    assert first.read(Path("/device/model")) == bytes(5000)
    assert first.sha256(Path("/device/model")) == hashlib.sha256(bytes(5000)).digest()
