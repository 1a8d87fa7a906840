"""The bench of virtual fleets: its loop does the fleet's work, and its fleets do all of it."""

import json

import pytest

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


@pytest.mark.process
@pytest.mark.mosquitto
def test_the_bench_over_a_broker_does_the_same_work(capsys, broker_of):
    """As many updates of as many devices as in memory."""
    url = broker_of("mosquitto").url
    assert main(["--run", "stacked", "40", "2", "--broker", url]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["accepted"], row["devices_heard"], row["broker"]) == (80, 40, url)
    assert row["per_cpu_s"] > 0
    assert row["per_wall_s"] > 0
