"""Every scenario on every board that was named: `pytest --pyargs hil.boards --board KIND`, or `make hil`."""

import pytest

from hil.boards.board import Board
from hil.boards.scenarios import SCENARIOS, needs
from hil.boards.site import Site


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, board: Board, site: Site) -> None:
    """It goes well, and every update that the device made is folded exactly once."""
    ability = needs(SCENARIOS[name])
    if ability and ability not in board.abilities:
        pytest.skip(f"this board's {ability} cannot be broken here")
    SCENARIOS[name](board, site)
