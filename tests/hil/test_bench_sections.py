"""Sections of docs/benchmarks.md: what a page says is what its figures are, the failed bound included."""

from hil.bench.buffer_memory import buffer_memory_section
from hil.bench.feedback import feedback_section
from hil.bench.server_rules import figures, server_rules_section
from hil.bench.simulator_page import simulator_section
from hil.bench.stability import Cell, row_of
from hil.bench.stability_page import stability_section


def _cell(seed: int, final: float, *, best: float = 0.96, rounds: float = 0.96) -> Cell:
    return Cell(
        load=5.0,
        scheme="iid",
        seed=seed,
        final=final,
        best=best,
        rounds=rounds,
        versions=9,
        staleness=2.0,
    )


def test_a_row_of_stability_is_judged_by_its_median_and_shows_its_worst_seed():
    """Three seeds, of which one fell: the row holds and says so; two that fell: it does not."""
    held = row_of([_cell(0, 0.955), _cell(1, 0.958), _cell(2, 0.90)])
    assert held["holds"]
    assert (held["seeds_that_hold"], held["final_min"], held["fallen_max"]) == (2, 0.9, 0.06)
    fallen = row_of([_cell(0, 0.94), _cell(1, 0.958), _cell(2, 0.90)])
    assert not fallen["holds"]
    frame = {"devices": 60, "updates": 2400, "seeds": 3}
    assert "All hold." in stability_section({**frame, "rows": [held]})
    page = stability_section({**frame, "rows": [held, fallen]})
    assert "Beyond it: IID at load 5." in page
    assert (
        "| IID | 5 | 0.955 (0.900) | 0.960 | 0.960 | 0.005 (0.060) | 0.005 (0.060) | 2.0 | 2 of 3 |" in page
    )


def test_seeds_are_compared_with_their_own_best():
    """Each of three seeds ends at its best: nothing has fallen, though the medians lie apart."""
    row = row_of([_cell(0, 0.90, best=0.90), _cell(1, 0.95, best=0.95), _cell(2, 0.97, best=0.97)])
    assert row["fallen_max"] == 0.0


def test_a_server_rule_has_a_row_for_both_codecs():
    """One short run of one seed: every optimizer, and every aggregator that stands attackers."""
    rows = list(figures(versions=1, seeds=1, devices=10))
    assert {"sgd", "adam", "mean", "median", "trimmed_mean", "krum"} <= {row["name"] for row in rows}
    assert [row["attackers"] for row in rows if row["name"] in ("sgd", "krum")] == [0, 1]
    page = server_rules_section({"versions": 1, "seeds": 1, "rows": rows})
    sgd = next(row for row in rows if row["name"] == "sgd")
    median = sgd["float32"]["median"]
    assert f"| sgd | 0 of 10 | {median:.4f} ({median:.4f}) |" in page


def test_the_memory_of_a_buffer_is_the_median_of_its_runs():
    """A run that a machine spoilt stays visible and decides nothing."""
    peaks = {"10": [80.0, 81.0, 99.0], "1000": [83.0, 84.0, 85.0]}
    figures_ = {"parameters": 100_510, "updates": 3000, "peaks_mib": peaks, "difference_mib": 3.0}
    page = buffer_memory_section(figures_)
    assert "| 10 | 81.0 | 80.0, 81.0, 99.0 |\n| 1,000 | 84.0 | 83.0, 84.0, 85.0 |" in page
    assert "medians of 3 alternating" in page


def test_a_way_of_simulating_is_told_in_times_of_the_loop():
    """After the first version: a tenth of the loop's updates is ten times its cost."""
    run = {"devices": 1000, "devices_heard": 1000, "accuracy": 0.3, "first_version_cpu_s": 1.0}
    runs = [
        {**run, "way": "loop", "per_cpu_s": 7000, "later_per_cpu_s": 8000},
        {**run, "way": "onnx", "per_cpu_s": 700, "later_per_cpu_s": 800},
    ]
    sizes = [
        {"devices": 1000, "devices_heard": 999, "per_cpu_s": 900, "resident_mib": 91},
        {"devices": 11_000, "devices_heard": 11_000, "per_cpu_s": 800, "resident_mib": 191},
    ]
    wired = [{**runs[1], "per_wall_s": 950}, {**runs[1], "per_wall_s": 650, "broker": "mqtt://127.0.0.1:1"}]
    page = simulator_section({"versions": 6, "runs": runs, "sizes": sizes, "over_broker": wired})
    assert "| virtual devices, ONNX Runtime | 700 | 800 | 1.00 | 0.300 | 10.0 |" in page
    assert "| 1,000 | 999 | 900 | 91 | 90 |  |\n| 11,000 | 11,000 | 800 | 191 | 185 | 10,486 |" in page
    assert "| virtual devices, ONNX Runtime | in memory | 950 | 0.300 |" in page
    assert "| virtual devices, ONNX Runtime | mosquitto | 650 | 0.300 |" in page
    assert "--largest" not in page


def test_feedback_counts_the_parameters_of_its_network():
    """64 inputs, 256 hidden units, ten classes."""
    row = {"codec": "float32", "last": 0.95, "last_min": 0.94, "half": 0.9, "bits": 32.0}
    page = feedback_section({"versions": 40, "seeds": 5, "devices": 20, "hidden": 256, "rows": [row]})
    assert "19,210 parameters" in page
    assert "| `float32` | 32.00 | 0.9500 (0.9400) | 0.9000 |" in page
