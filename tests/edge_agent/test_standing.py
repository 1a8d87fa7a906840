"""When the coordinator hears of what lastingly keeps a device from training."""

import pytest

from edge_agent.standing import MOST_AN_HOUR, Standing
from fl_protocol.clock import ManualClock


class Scene:
    """A standing, and the moments at which it asked for a birth."""

    def __init__(self):
        self.clock = ManualClock(5000.0)
        self.trouble = ""
        self.births = []
        self.standing = Standing(self.clock, trouble=lambda: self.trouble, restate=self._restate)

    def _restate(self, within_s):
        self.births.append(self.clock.monotonic())


@pytest.fixture
def scene():
    return Scene()


def test_trouble_is_told_once_and_once_more_when_it_is_over(scene):
    """However often it is asked in between; and what a birth has told already is no news."""
    for trouble in ("", "KeyError", "KeyError", ""):
        scene.trouble = trouble
        scene.standing.work()
        scene.standing.work()
    assert len(scene.births) == 2
    scene.trouble = "crash"
    scene.standing.told()
    assert scene.standing.work() > 3600
    assert len(scene.births) == 2


def test_numbers_are_no_news(scene):
    """A sensor says another temperature at every look."""
    for degrees in ("80", "80.5", "91.25"):
        scene.trouble = f"too hot: {degrees} degrees"
        scene.standing.work()
    assert len(scene.births) == 1


def test_what_comes_and_goes_costs_two_births_an_hour(scene):
    """In a day of a trouble that changes every minute; what stands at last is told as soon as that allows."""
    for minute in range(24 * 60):
        scene.trouble = "a" if minute % 2 else "b"
        scene.standing.work()
        scene.clock.advance(60.0)
    assert len(scene.births) == MOST_AN_HOUR * 24
    for scene.trouble in ("c", ""):
        scene.standing.work()
    assert len(scene.births) == MOST_AN_HOUR * 24 + 1
    scene.clock.advance(scene.standing.work())
    scene.standing.work()
    assert len(scene.births) == MOST_AN_HOUR * 24 + 2
