"""The gates that CI puts a demo through."""

import json

import pytest

from hil.gate import faults, main

GOOD = {
    "accuracy": 0.93,
    "bytes_up_per_update": 790.0,
    "lost": 0,
    "duplicated": 0,
    "balanced": True,
    "replay_ok": True,
    "runtimes": {"onnx": {"devices": 2, "accepted": 9, "folded": 8}, "numpy": {"accepted": 3, "folded": 0}},
    "runtimes_absent": {"tflite": "not installed"},
}


def test_good_figures_pass(tmp_path, capsys):
    """Exit code 0, and a word about it."""
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(GOOD))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == "all gates of the demo hold\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accuracy": 0.9}, "accuracy 0.9 is below 0.91"),
        ({"accuracy": None}, "accuracy None is below 0.91"),
        ({"bytes_up_per_update": 801}, "801 bytes an update"),
        ({"lost": 1}, "1 updates lost"),
        ({"duplicated": 2}, "2 duplicated"),
        ({"balanced": False}, "0 updates lost"),
        ({"replay_ok": False}, "not reproduced bit for bit"),
    ],
)
def test_each_figure_out_of_bounds_is_named_and_fails(tmp_path, capsys, change, says):
    """Exit code 1 and a sentence."""
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(GOOD | change))
    assert main([str(path)]) == 1
    assert says in capsys.readouterr().out


def test_each_runtime_that_is_named_must_have_folded_updates(tmp_path, capsys):
    """One that is absent, one whose updates came to nothing, one that nobody heard of."""
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(GOOD))
    assert main([str(path), "onnx"]) == 0
    assert main([str(path), "onnx", "numpy", "tflite", "litert"]) == 1
    said = capsys.readouterr().out
    assert "no update of onnx" not in said
    assert said.count("was folded") == 3
    assert "no update of tflite was folded: not installed" in said


def test_a_system_that_counts_no_bytes_is_not_blamed_for_them():
    """Only Linux tells what a socket sent."""
    assert faults(GOOD | {"bytes_up_per_update": None}) == []


def test_wrong_usage_ends_with_2(capsys):
    """A file must be named."""
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().err
