"""Back off: how long a device leaves off after what failed several times in a row."""

from edge_agent.chance import Chance

__all__ = ["back_off_s"]

FIRST_S = 30.0
LONGEST_S = 3600.0


def back_off_s(in_a_row: int, chance: Chance) -> float:
    """Seconds after the ``in_a_row``-th failure, 1 or more: they double from 30 s to an hour, and are up to
    twice that at random."""
    return min(FIRST_S * 2.0 ** min(in_a_row - 1, 16), LONGEST_S) * chance.uniform(1.0, 2.0)
