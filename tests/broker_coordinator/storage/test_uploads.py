"""Large payloads: part files, and what a power cut leaves of them."""

import hashlib

import pytest
from simulated_disk import PowerCut, SimulatedDisk

from broker_coordinator.storage.uploads import PayloadFiles
from fl_protocol.errors import StorageError

ID, OTHER = b"\1" * 16, b"\2" * 16
CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).digest()


def _files(folder, disk) -> PayloadFiles:
    files = PayloadFiles(folder, disk=disk)
    files.make_folders()
    return files


def _gather(files: PayloadFiles) -> None:
    for start in (4096, 0, 8192):
        files.put(ID, start, CONTENT[start : start + 4096])
    files.sync([ID])


def test_parts_in_any_order_make_the_payload(tmp_path, simulated_disk):
    """Whole and checked it is renamed; a second ``finish`` after a crash says the same."""
    files = _files(tmp_path, simulated_disk)
    _gather(files)
    assert files.has_part(ID, len(CONTENT))
    assert not files.has_part(ID, len(CONTENT) + 1)
    assert not files.has_part(OTHER, 1)
    for _ in range(2):
        assert files.finish(ID, size=len(CONTENT), sha256=SHA256)
    assert files.read(ID, len(CONTENT)) == CONTENT
    assert files.read(ID, 5) is None
    assert files.read(OTHER, 5) is None
    files.discard([ID, OTHER])
    assert files.read(ID, len(CONTENT)) is None


@pytest.mark.parametrize(("size", "sha256"), [(len(CONTENT), b"x" * 32), (len(CONTENT) + 1, SHA256)])
def test_a_part_that_is_not_the_named_one_goes(tmp_path, simulated_disk, size, sha256):
    """Wrong hash or length: none of its bytes can be trusted."""
    files = _files(tmp_path, simulated_disk)
    _gather(files)
    assert not files.finish(ID, size=size, sha256=sha256)
    assert not files.has_part(ID, 1)
    assert not files.finish(OTHER, size=1, sha256=SHA256)


@pytest.mark.parametrize("seed", range(6))
def test_recorded_ranges_survive_a_power_cut(tmp_path, seed):
    """After ``sync`` the bytes and the name of the part are on the disk."""
    disk = SimulatedDisk(seed=seed)
    _gather(_files(tmp_path, disk))
    disk.crash()
    assert PayloadFiles(tmp_path).finish(ID, size=len(CONTENT), sha256=SHA256)


@pytest.mark.parametrize("skipped", ["sync:1", "sync_directory:3"])
def test_a_dropped_fsync_of_a_part_is_seen(tmp_path, skipped):
    """The check on the check: without the sync of file or folder, some power cut loses recorded ranges."""
    lost = 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        disk = SimulatedDisk(seed=seed, skip={skipped})
        _gather(_files(folder, disk))
        disk.crash()
        lost += not PayloadFiles(folder).finish(ID, size=len(CONTENT), sha256=SHA256)
    assert lost


@pytest.mark.parametrize("seed", range(6))
def test_a_finished_payload_survives_a_power_cut(tmp_path, seed):
    """When ``finish`` has said True, the accepting commit may follow."""
    disk = SimulatedDisk(seed=seed)
    files = _files(tmp_path, disk)
    _gather(files)
    assert files.finish(ID, size=len(CONTENT), sha256=SHA256)
    disk.crash()
    assert PayloadFiles(tmp_path).read(ID, len(CONTENT)) == CONTENT


def test_a_dropped_fsync_of_the_payload_folder_is_seen(tmp_path):
    """The check on the check: without it, some power cut takes an accepted payload away."""
    lost = 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        disk = SimulatedDisk(seed=seed, skip={"sync_directory:4"})
        files = _files(folder, disk)
        _gather(files)
        files.finish(ID, size=len(CONTENT), sha256=SHA256)
        disk.crash()
        lost += PayloadFiles(folder).read(ID, len(CONTENT)) != CONTENT
    assert lost


def test_a_power_cut_before_any_operation_loses_nothing_recorded(tmp_path):
    """Once synced, the payload can be had again from the part or is there already."""
    whole = SimulatedDisk()
    (tmp_path / "whole").mkdir()
    files = _files(tmp_path / "whole", whole)
    _gather(files)
    gathered = whole.operations
    files.finish(ID, size=len(CONTENT), sha256=SHA256)
    for cut in range(gathered + 1, whole.operations + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        disk = SimulatedDisk(seed=cut, cut=cut)
        files = _files(folder, disk)
        _gather(files)
        with pytest.raises(PowerCut):
            files.finish(ID, size=len(CONTENT), sha256=SHA256)
        disk.crash()
        assert PayloadFiles(folder).finish(ID, size=len(CONTENT), sha256=SHA256)


@pytest.mark.parametrize("seed", range(6))
def test_a_payload_whose_commit_did_not_come_is_a_part_again(tmp_path, seed):
    """It goes on where the store knows it to be, after a power cut too; one too short, or none, does not."""
    disk = SimulatedDisk(seed=seed)
    files = _files(tmp_path, disk)
    assert not files.reopen(ID, 1)
    _gather(files)
    assert files.finish(ID, size=len(CONTENT), sha256=SHA256)
    assert not files.reopen(ID, len(CONTENT) + 1)
    assert files.reopen(ID, len(CONTENT) - 1)
    disk.crash()
    assert PayloadFiles(tmp_path).has_part(ID, len(CONTENT))
    assert PayloadFiles(tmp_path).finish(ID, size=len(CONTENT), sha256=SHA256)


def test_files_of_nobody_are_swept(tmp_path, simulated_disk):
    """What no row and no upload names goes at the start."""
    files = _files(tmp_path, simulated_disk)
    _gather(files)
    files.put(OTHER, 0, b"other")
    assert files.sweep(parts=[OTHER], payloads=[]) == 1
    assert files.has_part(OTHER, 5)


def test_a_full_disk_is_said_so(tmp_path):
    """The error names the file and what to do."""
    files = _files(tmp_path, SimulatedDisk(fail={"write_at:1"}))
    with pytest.raises(StorageError, match=r"(?s)No space left.*free some space"):
        files.put(ID, 0, b"content")
