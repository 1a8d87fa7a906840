"""A real board over SSH, which is this machine behind an sshd of our own."""

import sys

import pytest

from fl_protocol.errors import ConfigError
from hil.boards.board import BoardFailure
from hil.boards.scenarios import SCENARIOS
from hil.boards.site import SiteOptions
from hil.boards.ssh_inventory import read_inventory
from hil.boards.station import expand, open_station

pytestmark = [pytest.mark.process, pytest.mark.mosquitto]


@pytest.mark.timeout(300)
def test_scenarios_run_on_a_board_behind_ssh(ssh_boards, tmp_path):
    """It joins and trains, its power is cut by its owner's command, and its books come over SSH; at the end
    nothing of it is left on the board."""
    said: list[str] = []
    assert expand(["ssh"], ssh_boards) == ["ssh:desk"]
    with open_station(
        "ssh:desk", tmp_path / "station", SiteOptions(), boards_file=ssh_boards, say=said.append
    ) as station:
        assert station.board.abilities == {"power", "link"}
        with pytest.raises(BoardFailure, match="must not be filled"):
            station.board.fill_disk()
        for name in ("join", "power_cut_in_training", "power_cut_in_upload"):
            station.settle()
            SCENARIOS[name](station.board, station.site)
        assert station.site.audit(station.board.books())["created"] >= 2
    assert not (tmp_path / "far").exists()
    assert "training" in (tmp_path / "station" / "board" / "agent.log").read_text()


def test_boards_that_cannot_be_are_refused_with_line_and_reason(tmp_path):
    """A list of boards holds commands: what is not understood is not run."""
    path = tmp_path / "boards.toml"
    path.write_text(
        f'[boards.one]\nssh = "-oProxyCommand=x"\nagent = "{sys.executable}"\n'
        '[boards.two]\nssh = "pi@host"\npower_off = "x"\nagent = "a"\n'
        '[boards.three]\nssh = "pi@host"\n'
        '[boards.four]\nssh = "pi@host"\nagent = "a"\nfolder = "/"\nslow = 3\n'
    )
    with pytest.raises(ConfigError) as caught:
        read_inventory(path)
    said = str(caught.value)
    assert "boards.toml:1: boards.one: ssh is a destination" in said
    assert "boards.toml:4: boards.two: power_off and power_on belong together" in said
    assert "boards.three: name either the payload or the agent" in said
    assert "boards.toml:14: boards.four.slow: unknown key" in said
