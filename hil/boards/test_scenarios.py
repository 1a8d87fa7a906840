"""Every scenario on every board that was named: `pytest --pyargs hil.boards --board KIND`, or `make hil`."""

from collections.abc import Sequence

import pytest

from hil.boards.board import Board
from hil.boards.scenarios import PAIR_SCENARIOS, SCENARIOS, needs
from hil.boards.site import Site


# First, so that boards whose first boot takes minutes boot at the same time.
@pytest.mark.parametrize("name", PAIR_SCENARIOS)
def test_pair_scenario(name: str, pair: Sequence[Board], site: Site) -> None:
    """It goes well, and every update that each of the two devices made is folded exactly once."""
    ability = needs(PAIR_SCENARIOS[name])
    if any(ability and ability not in board.abilities for board in pair):
        pytest.skip(f"this board's {ability} cannot be broken here")
    PAIR_SCENARIOS[name](pair, site)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, board: Board, site: Site) -> None:
    """It goes well, and every update that the device made is folded exactly once."""
    ability = needs(SCENARIOS[name])
    if ability and ability not in board.abilities:
        pytest.skip(f"this board's {ability} cannot be broken here")
    SCENARIOS[name](board, site)
