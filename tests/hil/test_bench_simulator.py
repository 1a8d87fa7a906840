"""The bench of virtual fleets: its loop does the fleet's work, and its fleets do all of it."""

import json

from hil.bench.simulator import main


def test_loop_and_fleet_do_the_same_work(capsys):
    """As many updates, from each device; what both learn in so short a run is about the same."""
    figures = {}
    for way in ("loop", "stacked"):
        assert main(["--run", way, "40", "3"]) == 0
        figures[way] = json.loads(capsys.readouterr().out)
    for row in figures.values():
        assert (row["accepted"], row["devices_heard"]) == (120, 40)
        assert row["per_cpu_s"] > 0
    assert abs(figures["loop"]["accuracy"] - figures["stacked"]["accuracy"]) < 0.1
