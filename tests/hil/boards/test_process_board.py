"""Boards that cannot be made: what they took of this machine, they give back."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_protocol.errors import ConfigError
from hil.boards import qemu_board
from hil.boards.board import BoardFailure
from hil.boards.confinement import Confinement
from hil.boards.line import RelayLine
from hil.boards.process_board import ProcessBoard


class EmptySite:
    """A site that enrols a device, and has no samples for it."""

    port = 1

    def __init__(self, folder):
        self._folder = folder

    def enroll(self, device, *, broker):
        credential = self._folder / "credential"
        credential.mkdir()
        (credential / "agent.toml").write_text(
            f'device = "{device}"\nfleet = "f"\nbroker = "{broker}"\nstate = "state"\ninsecure = true\n'
        )
        return credential

    def samples(self, device):
        return self._folder / "nowhere.npz"


class WatchedLine(RelayLine):
    """A relay that notes its end."""

    closed = False

    def close(self):
        self.closed = True
        super().close()


def test_a_board_that_cannot_be_made_leaves_no_mount_group_or_relay(tmp_path):
    """Its samples cannot be read: the disk that was mounted for it is gone, and so is all it was given."""
    group = tmp_path / "group"
    group.mkdir()
    line = WatchedLine(1)
    with pytest.raises(BoardFailure, match="samples add"):
        ProcessBoard(
            "d1", EmptySite(tmp_path), tmp_path / "board", line=line, confinement=Confinement(group=group)
        )
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not os.path.ismount(tmp_path / "board" / "state")
    assert line.closed
    assert not group.exists()


def test_an_emulated_board_without_an_emulator_leaves_no_relay(tmp_path, monkeypatch):
    """Its line is there before its machine is."""
    made = []

    def line(port):
        made.append(WatchedLine(port))
        return made[-1]

    monkeypatch.setattr(qemu_board, "RelayLine", line)
    monkeypatch.setenv("PATH", str(tmp_path))
    site = SimpleNamespace(say=print, samples=lambda device: tmp_path / "samples.npz", port=1)
    card = SimpleNamespace(path=tmp_path / "card.img", cmdline="")
    with pytest.raises(ConfigError, match="qemu"):
        qemu_board.QemuBoard("q", site, tmp_path, kernel=tmp_path, ramdisk=tmp_path, card=card)
    assert [line.closed for line in made] == [True]
