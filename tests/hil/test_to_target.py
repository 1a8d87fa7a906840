"""The bench of targets: ratios are of runs that got there, and a run that is kept is not made again."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hil.bench.learning_curve import CurvePoint, LearningCurve
from hil.bench.target_grid import Cell, measured
from hil.bench.target_page import target_section
from hil.bench.target_plots import write_plots
from hil.bench.to_target import target_figures


def _curve(accuracies: list[float], *, payload: int, seconds: float) -> LearningCurve:
    points = tuple(
        CurvePoint(
            virtual_s=seconds * turn,
            updates=20 * turn,
            payload=payload * turn,
            bytes_up=2 * payload * turn,
            accuracy=accuracy,
            worst=accuracy - 0.1,
        )
        for turn, accuracy in enumerate(accuracies, 1)
    )
    return LearningCurve(points=points, groups=10)


def _cell(aggregation: str, codec: str) -> Cell:
    return Cell(workload="digits", aggregation=aggregation, codec=codec, seed=0)


def test_a_codec_is_compared_where_each_reached_what_float32_ends_at() -> None:
    """Thirty times smaller updates, and six times as many of them until there: a fifth of the bytes."""
    fast, slow = [0.9] * 12, [0.5] * 3 + [0.9] * 9
    curves = {
        _cell("rounds, all", "float32"): _curve(fast, payload=3000, seconds=50.0),
        _cell("fedbuff", "float32"): _curve(fast, payload=3000, seconds=5.0),
        _cell("fedbuff", "eden(bits=1)"): _curve(slow, payload=100, seconds=5.0),
        _cell("rounds, all", "eden(bits=1)"): _curve(fast, payload=100, seconds=50.0),
    }
    figures = target_figures(curves)
    row = next(
        row for row in figures["rows"] if (row["aggregation"], row["codec"]) == ("fedbuff", "eden(bits=1)")
    )
    # The running mean of three is there three versions after the last low one.
    assert row["updates"]["median"] == 120
    assert row["payload"]["median"] == pytest.approx(30 / 6)
    assert [each["times"]["median"] for each in figures["slower"]] == [pytest.approx(50 / 30)]
    assert "5.0 (5.0)" in target_section(figures)
    assert "`sparse`" in target_section(figures)


def test_a_run_that_never_gets_there_counts_in_no_ratio() -> None:
    """It is told by the number of seeds that did."""
    curves = {
        _cell("fedbuff", "float32"): _curve([0.9] * 8, payload=3000, seconds=5.0),
        _cell("fedbuff", "int8"): _curve([0.7] * 8, payload=800, seconds=5.0),
    }
    (row,) = [row for row in target_figures(curves)["rows"] if row["codec"] == "int8"]
    assert (row["reached"], row["seeds"], row["payload"]) == (0, 1, None)


def test_a_run_that_is_kept_is_read_and_not_made_again(tmp_path: Path) -> None:
    """A bench that was interrupted goes on where it was; a codec that is not there is left out."""
    cell, curve = _cell("fedbuff", "float32"), _curve([0.9] * 4, payload=3000, seconds=5.0)
    book = tmp_path / "runs.jsonl"
    key = {"workload": "digits", "aggregation": "fedbuff", "codec": "float32", "seed": 0}
    book.write_text(json.dumps({**key, **curve.to_body()}) + "\n")
    assert measured(book, [cell, _cell("fedbuff", "no-such-codec")]) == {cell: curve}


def test_the_page_shows_the_plots_that_are_written(tmp_path: Path) -> None:
    """A picture for each, of the workloads that were run."""
    curves = {
        _cell(aggregation, codec): _curve([0.5, 0.8, 0.9, 0.9], payload=100, seconds=5.0)
        for aggregation in ("rounds, all", "fedbuff")
        for codec in ("float32", "eden(bits=1)")
    }
    figures = target_figures(curves)
    write_plots(tmp_path, curves, figures["rows"])
    shown = set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", target_section(figures)))
    assert shown == {file.name for file in tmp_path.iterdir()}
    assert len(shown) == 4
    for file in tmp_path.iterdir():
        ElementTree.fromstring(file.read_text(encoding="utf-8"))
