"""The bench of peers: all do the same work, and only what comes after the first version is timed."""

import importlib.util
import json

from hil.bench.__main__ import main as bench
from hil.bench.peers import Marks, main
from hil.bench.peers_page import peers_section


def test_the_first_version_is_not_in_the_rate():
    """Three versions of ten devices, whose CPU is told: ten seconds for the first, two for each after it."""
    told = iter([0.0, 10.0, 12.0, 14.0])
    marks = Marks(cpu=lambda: next(told))
    for _ in range(3):
        marks.note()
    assert marks.figures(10)["updates_per_cpu_s"] == 5.0


def test_loop_and_virtual_fleets_learn_the_same(capsys):
    """Forty devices, three versions: what differs is the noise of one bit an element."""
    found = {}
    for way in ("loop", "numpy", "stacked"):
        assert main(["--run", way, "40", "3"]) == 0
        found[way] = json.loads(capsys.readouterr().out)
    assert all(row["updates_per_s"] > 0 for row in found.values())
    assert (
        max(row["accuracy"] for row in found.values()) - min(row["accuracy"] for row in found.values()) < 0.1
    )


def test_without_flower_it_says_which_command_has_it(capsys, monkeypatch):
    """Nothing is measured: a comparison without the peer is none."""
    monkeypatch.setattr("hil.bench.peers._run", None)
    assert importlib.util.find_spec("flwr") is None
    assert main([]) == 1
    assert "make bench-peers" in capsys.readouterr().err


def test_a_section_that_cannot_be_measured_leaves_the_page_alone(capsys, tmp_path):
    """`make bench` in the usual environment: an error, and no figures of a run that did not take place."""
    assert bench(["--only", "peers", "--docs", str(tmp_path)]) == 1
    assert "make bench-peers" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_page_names_versions_and_each_run():
    """Both rates, every run's, and of whom they are."""
    row = {"updates_per_s": 58.7, "updates_per_cpu_s": 61.0, "first_version_s": 33.4, "accuracy": 0.19}
    ways = [{"way": way, **row, "runs": [50.0, 58.7, 1060.2]} for way in ("loop", "flower")]
    packages = {"flwr": "1.42.0", "ray": "2.55.1", "numpy": "2.4.6", "python": "3.11.7"}
    figures = {"devices": 1000, "versions": 4, "cores": 2, "packages": packages, "ways": ways}
    page = peers_section(figures)
    assert "Flower 1.42.0 on Ray 2.55.1" in page
    assert "| Flower's simulation | 59 | 50, 59, 1,060 | 61 | 33.4 | 0.190 |" in page
    assert "medians of 3 runs" in page
