"""State files: one form, checked when read, durable when the version is committed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_disk import PowerCut, SimulatedDisk

from broker_coordinator.aggregation.version_state import VersionFiles, VersionState
from broker_coordinator.storage.records import VersionRecord
from fl_protocol.errors import StorageError

STATE = VersionState(
    epoch=2,
    number=7,
    fingerprint=b"finger8.",
    master=np.arange(5, dtype=np.float32),
    slots={"v": np.full(5, 2, np.float32), "m": np.full(5, 1, np.float32)},
    norms=np.array([1, 2, 3], np.float32),
    witnesses=np.array([4, 5, 2**32 - 1], np.uint32),
)


def _record(digest: bytes) -> VersionRecord:
    return VersionRecord(
        epoch=2,
        number=7,
        digest=digest,
        published_sha256=b"",
        rules="",
        through_seq=0,
        updates=0,
        closed_by="size",
        term=1,
    )


def test_a_state_comes_back_bit_for_bit():
    """Packed, unpacked and packed again it is the same bytes, whatever order the slots were given in."""
    back = VersionState.unpack(STATE.pack())
    assert back.pack() == STATE.pack()
    assert (back.epoch, back.number, back.fingerprint) == (2, 7, b"finger8.")
    assert back.slots["m"].tolist() == [1] * 5
    assert back.witnesses.tolist() == [4, 5, 2**32 - 1]
    shuffled = replace(STATE, slots={"m": STATE.slots["m"], "v": STATE.slots["v"]})
    assert shuffled.digest() == STATE.digest()


def test_the_form_is_frozen():
    """The identity of every version there is hangs on these bytes."""
    assert STATE.digest().hex() == "6da0e72ecd60421e835ed12417e90317a10bd12b694737db0fbe93af74807121"


def test_everything_is_part_of_the_identity():
    """A change of any part gives another digest."""
    others = [
        replace(STATE, epoch=3),
        replace(STATE, number=8),
        replace(STATE, master=STATE.master + np.float32(1)),
        replace(STATE, slots={"v": STATE.slots["v"], "n": STATE.slots["m"]}),
        replace(STATE, norms=STATE.norms * np.float32(2)),
        replace(STATE, witnesses=STATE.witnesses[::-1]),
    ]
    assert len({state.digest() for state in [STATE, *others]}) == 7


@given(st.binary(max_size=200), st.integers(0, 120))
def test_bytes_that_are_no_state_are_refused(noise, at):
    """Arbitrary and mutated files raise StorageError, and nothing else."""
    content = STATE.pack()
    for wrong in (noise, content[:at] + noise, content[:at]):
        if wrong != content:
            try:
                VersionState.unpack(wrong)
            except StorageError:
                continue
            assert len(wrong) == len(content)


def test_a_file_that_is_not_the_committed_one_is_refused(tmp_path):
    """A flipped bit, another version's file, a missing file: each said so."""
    files = VersionFiles(tmp_path)
    digest = files.write(STATE)
    assert files.read(_record(digest)).pack() == STATE.pack()
    path = files.path(2, 7)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="not the state that was committed"):
        files.read(_record(digest))
    path.unlink()
    with pytest.raises(StorageError, match="not kept"):
        files.read(_record(digest))


def test_old_states_are_removed(tmp_path):
    """Below the anchor nothing stays; other files are not touched."""
    files = VersionFiles(tmp_path)
    for number in (1, 2, 10):
        files.write(replace(STATE, number=number))
    assert files.remove_below(10) == 2
    assert files.kept() == [(2, 10)]


def test_a_written_state_survives_a_power_cut(tmp_path):
    """Whatever was not synced is gone; the state that was written is not."""
    disk = SimulatedDisk()
    digest = VersionFiles(tmp_path, disk=disk).write(STATE)
    disk.crash()
    assert VersionFiles(tmp_path).read(_record(digest)).pack() == STATE.pack()


def test_a_dropped_fsync_of_the_state_is_seen(tmp_path):
    """The check on the check: with the file's fsync left out, some power cut loses the state."""
    lost = 0
    for seed in range(8):
        disk = SimulatedDisk(seed=seed, skip={"sync:1"})
        folder = tmp_path / str(seed)
        folder.mkdir()
        digest = VersionFiles(folder, disk=disk).write(STATE)
        disk.crash()
        try:
            VersionFiles(folder).read(_record(digest))
        except StorageError:
            lost += 1
    assert lost


def test_power_cuts_in_between_leave_no_wrong_state(tmp_path):
    """Before every operation of a write: what can be read afterwards is the whole state."""
    whole = SimulatedDisk()
    (tmp_path / "whole").mkdir()
    digest = VersionFiles(tmp_path / "whole", disk=whole).write(STATE)
    for cut in range(1, whole.operations + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        disk = SimulatedDisk(seed=cut, cut=cut)
        with pytest.raises(PowerCut):
            VersionFiles(folder, disk=disk).write(STATE)
        disk.crash()
        path = VersionFiles(folder).path(2, 7)
        assert not path.exists() or path.read_bytes() == STATE.pack()
        assert VersionFiles(folder).write(STATE) == digest
