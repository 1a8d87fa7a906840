"""The bench of peers: all do the same work, and only what comes after the first version is timed."""

import json
from importlib.metadata import PackageNotFoundError

import pytest

from hil.bench.__main__ import main as bench
from hil.bench.peers import Marks, main
from hil.bench.peers_page import peers_section


@pytest.fixture
def without_flower(monkeypatch):
    """An environment in which Flower is not installed, whatever this one has."""

    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("hil.bench.peers.version", version)


def test_the_first_version_is_not_in_the_rate():
    """Three versions of ten devices, whose CPU is told: ten seconds for the first, two for each after it."""
    told = iter([0.0, 10.0, 12.0, 14.0])
    marks = Marks(cpu=lambda: next(told))
    for _ in range(3):
        marks.note()
    assert marks.figures(10)["updates_per_cpu_s"] == 5.0


def test_loop_and_virtual_fleets_learn_the_same(capsys):
    """Forty devices, twelve versions, one digit in ten right at the start: what differs is the noise of one
    bit an element."""
    found = {}
    for way in ("loop", "numpy", "stacked"):
        assert main(["--run", way, "40", "12"]) == 0
        found[way] = json.loads(capsys.readouterr().out)
    assert all(row["updates_per_s"] > 0 for row in found.values())
    accuracies = [row["accuracy"] for row in found.values()]
    assert min(accuracies) > 0.4
    assert max(accuracies) - min(accuracies) < 0.05


@pytest.mark.usefixtures("without_flower")
def test_without_flower_it_says_which_command_has_it(capsys, monkeypatch):
    """Nothing is measured: a comparison without the peer is none."""
    monkeypatch.setattr("hil.bench.peers._run", None)
    assert main([]) == 1
    assert "make bench-peers" in capsys.readouterr().err


@pytest.mark.usefixtures("without_flower")
def test_a_section_that_cannot_be_measured_leaves_the_page_alone(capsys, tmp_path):
    """`make bench` in the usual environment: an error, and no figures of a run that did not take place."""
    assert bench(["--only", "peers", "--docs", str(tmp_path)]) == 1
    assert "make bench-peers" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_ends_in_a_sentence(capsys, monkeypatch):
    """The process of a way that there is none of ends with an error, which is on stderr already."""
    monkeypatch.setattr("hil.bench.peers.version", lambda name: "1.0")
    monkeypatch.setattr("hil.bench.peers.WAYS", ("nothing",))
    assert main(["--runs", "1"]) == 1
    assert "error: a run of nothing ended with 1" in capsys.readouterr().err


def test_a_run_that_takes_too_long_is_ended(capsys, monkeypatch):
    """Before its Python has even begun."""
    monkeypatch.setattr("hil.bench.peers.version", lambda name: "1.0")
    monkeypatch.setattr("hil.bench.peers.LONGEST_S", 0.0)
    assert main(["--runs", "1"]) == 1
    assert "error: a run of loop takes longer than 0 s" in capsys.readouterr().err


def test_ways_that_learned_something_else_are_not_compared(capsys, monkeypatch):
    """Their rates would be of different work."""
    learned = {"loop": 0.5, "numpy": 0.5, "stacked": 0.51, "flower": 0.4}
    monkeypatch.setattr("hil.bench.peers.version", lambda name: "1.0")
    monkeypatch.setattr(
        "hil.bench.peers._run", lambda way, *_: {"updates_per_s": 1.0, "accuracy": learned[way]}
    )
    assert main([]) == 1
    assert "flower 0.4000" in capsys.readouterr().err


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
