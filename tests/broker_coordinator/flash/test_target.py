"""What may be overwritten: told by a tree of files that is as the kernel's."""

import errno
import os
from pathlib import Path

import pytest

from broker_coordinator.flash.target import System, inspect_target, open_target
from fl_protocol.errors import StorageError


@pytest.fixture
def system(tmp_path):
    """A machine with its system on nvme0n1, and a card with two partitions in a reader, sdb."""
    sys, proc = tmp_path / "sys", tmp_path / "proc"
    disks = {"nvme0n1": ("259:0", 10**9), "sdb": ("8:16", 62_333_952), "sdc": ("8:32", 0)}
    (sys / "dev" / "block").mkdir(parents=True)
    for name, (number, sectors) in disks.items():
        _device(sys, sys / "devices" / name, number, sectors)
    for name, disk, number in (
        ("sdb1", "sdb", "8:17"),
        ("sdb2", "sdb", "8:18"),
        ("nvme0n1p2", "nvme0n1", "259:2"),
    ):
        _device(sys, sys / "devices" / disk / name, number, 1000)
        (sys / "devices" / disk / name / "partition").write_text("1\n")
    (sys / "devices" / "sdb" / "removable").write_text("1\n")
    (sys / "devices" / "sdb" / "device").mkdir()
    (sys / "devices" / "sdb" / "device" / "model").write_text("Card Reader \n")
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "mountinfo").write_text("22 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n")
    (proc / "swaps").write_text("Filename Type Size Used Priority\n")
    return System(sys=sys, proc=proc)


def _device(sys, folder, number, sectors):
    (folder / "holders").mkdir(parents=True)
    (folder / "dev").write_text(f"{number}\n")
    (folder / "size").write_text(f"{sectors}\n")
    (folder / "ro").write_text("0\n")
    (sys / "dev" / "block" / number).symlink_to(folder)


CARD = Path("/dev/sdb")


def test_an_unused_card_may(system):
    """Its size and model are for the question that comes before it is overwritten."""
    card = system.block_device("8:16", CARD)
    assert (card.name, card.size, card.model, card.removable) == (
        "sdb",
        62_333_952 * 512,
        "Card Reader",
        True,
    )


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("40 22 8:17 / /media/my\\040card rw - vfat /dev/sdb1 rw", "mounted: sdb1 at /media/my card"),
        ("40 22 0:55 / /mnt rw - btrfs /dev/sdb2 rw", "mounted: sdb2 at /mnt"),
        ("40 22 8:18 / /home rw - ext4 /dev/sdb2 rw", "disk of this system: /home"),
    ],
)
def test_what_is_mounted_may_not(system, line, fault):
    """By number, or by name where the file system has numbers of its own."""
    with (system.proc / "self" / "mountinfo").open("a") as mounts:
        mounts.write(f"{line}\n")
    with pytest.raises(StorageError, match=fault):
        system.block_device("8:16", CARD)


def test_what_is_used_otherwise_may_not(system):
    """The system's disk, swap, RAID, a partition, a locked card, an empty reader."""
    with pytest.raises(StorageError, match="disk of this system: / "):
        system.block_device("259:0", Path("/dev/nvme0n1"))
    with pytest.raises(StorageError, match=r"(?s)is a partition.*/dev/sdb"):
        system.block_device("8:17", Path("/dev/sdb1"))
    with pytest.raises(StorageError, match="no card in it"):
        system.block_device("8:32", Path("/dev/sdc"))
    disk = system.sys / "devices" / "sdb"
    (disk / "sdb2" / "holders" / "dm-0").mkdir()
    with pytest.raises(StorageError, match="sdb2 belongs to dm-0"):
        system.block_device("8:16", CARD)
    (disk / "sdb2" / "holders" / "dm-0").rmdir()
    (system.proc / "swaps").write_text("Filename Type\n/dev/sdb2 partition 1 0 -2\n")
    with pytest.raises(StorageError, match="swaps to /dev/sdb2"):
        system.block_device("8:16", CARD)
    (system.proc / "swaps").write_text("")
    (disk / "ro").write_text("1\n")
    with pytest.raises(StorageError, match="read-only"):
        system.block_device("8:16", CARD)


def test_a_file_has_its_name_when_it_is_finished(tmp_path):
    """Not before, and not if it is given up."""
    path = tmp_path / "card.img"
    with open_target(path) as card:
        card.write(0, b"a" * 10)
        card.write(10, bytes(1 << 20))
        assert not path.exists()
    assert os.listdir(tmp_path) == []
    with open_target(path) as card:
        card.write(0, b"a" * 10)
        card.write(10, bytes(1 << 20))
        card.write(2, bytes(3))
        card.finish()
    assert path.read_bytes() == b"aa" + bytes(3) + b"a" * 5 + bytes(1 << 20)
    with pytest.raises(StorageError, match="exists"), open_target(path):
        pass
    for bad, fault in (
        (Path("/dev/null"), "neither a file nor a disk"),
        (tmp_path / "no" / "x", "no folder"),
    ):
        with pytest.raises(StorageError, match=fault):
            inspect_target(bad)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    """And what to do about it; nothing is left behind."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_target(tmp_path / "card.img") as card:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match=r"(?s)No space left.*free some space"):
            card.write(0, b"a")
        monkeypatch.undo()
    assert os.listdir(tmp_path) == []
