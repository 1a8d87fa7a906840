"""The plots of the bench ``target``: SVG files beside docs/benchmarks.md."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hil.bench.learning_curve import LearningCurve
from hil.bench.target_grid import AGGREGATIONS, CODECS, WORKLOADS, Cell
from hil.plots import Bars, Points, grouped_bars, line_chart

__all__ = ["PLOTS", "plot_name", "write_plots"]

PLOTS = {
    "time": "accuracy over virtual time, by aggregation",
    "bytes": "accuracy over bytes, by codec",
    "smaller": "how many times fewer bytes to the target",
    "end": "accuracy at the end, and of the worst group",
}
"""By the name in the file's, what it shows."""
_DEFAULT = "eden(bits=1)"
_SHOWN = "fedbuff"
_WORST = {"digits": "worst digit", "motion": "worst person"}


def plot_name(workload: str, kind: str) -> str:
    """The file's."""
    return f"benchmarks-target-{workload}-{kind}.svg"


def write_plots(
    folder: Path, curves: Mapping[Cell, LearningCurve], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write those of every workload that was run; ``rows`` are those of the table."""
    for workload in WORKLOADS:
        own = {cell: curve for cell, curve in curves.items() if cell.workload == workload}
        table = {(row["aggregation"], row["codec"]): row for row in rows if row["workload"] == workload}
        if own:
            drawn = (
                _time(workload, own),
                _bytes(workload, own),
                _smaller(workload, table),
                _end(workload, table),
            )
            for kind, plot in zip(PLOTS, drawn, strict=True):
                (folder / plot_name(workload, kind)).write_text(plot + "\n", encoding="utf-8")


def _time(workload: str, curves: Mapping[Cell, LearningCurve]) -> str:
    return line_chart(
        list(_lines(curves, [(name, _DEFAULT) for name in AGGREGATIONS], "virtual_s", by_codec=False)),
        title=f"{workload}: accuracy over time, one bit",
        x_label="virtual seconds",
        y_label="accuracy",
        decades=True,
    )


def _bytes(workload: str, curves: Mapping[Cell, LearningCurve]) -> str:
    return line_chart(
        list(_lines(curves, [(_SHOWN, codec) for codec in CODECS], "bytes_up", by_codec=True)),
        title=f"{workload}: accuracy over all MQTT bytes up, {_SHOWN}",
        x_label="bytes up, all devices",
        y_label="accuracy",
        decades=True,
    )


def _lines(
    curves: Mapping[Cell, LearningCurve], pairs: Sequence[tuple[str, str]], x: str, *, by_codec: bool
) -> Iterator[Points]:
    """Medians over the seeds, point by point, for each pair of aggregation and codec."""
    for aggregation, codec in pairs:
        runs = [
            curve for cell, curve in curves.items() if (cell.aggregation, cell.codec) == (aggregation, codec)
        ]
        if runs:
            count = min(len(curve.points) for curve in runs)
            yield Points(
                name=_short(codec) if by_codec else aggregation,
                x=[statistics.median(getattr(curve.points[at], x) for curve in runs) for at in range(count)],
                y=[statistics.median(curve.smooth[at] for curve in runs) for at in range(count)],
            )


def _smaller(workload: str, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    return grouped_bars(
        list(AGGREGATIONS),
        [
            _bars(_short(codec), [rows.get((name, codec), {}).get("all") for name in AGGREGATIONS])
            for codec in CODECS[1:]
        ],
        title=f"{workload}: times fewer MQTT bytes to the target",
        x_label="median over the seeds, line: least",
        y_label="times fewer than float32",
    )


def _end(workload: str, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    return grouped_bars(
        list(AGGREGATIONS),
        [
            _bars(name, [rows.get((aggregation, _DEFAULT), {}).get(key) for aggregation in AGGREGATIONS])
            for name, key in (("all", "accuracy"), (_WORST[workload], "worst"))
        ],
        title=f"{workload}: accuracy at the end, one bit",
        x_label="median over the seeds, line: minimum",
        y_label="accuracy",
    )


def _bars(name: str, spreads: Sequence[Mapping[str, float] | None]) -> Bars:
    return Bars(
        name=name,
        values=[None if spread is None else spread["median"] for spread in spreads],
        lowest=[None if spread is None else spread["worst"] for spread in spreads],
    )


def _short(codec: str) -> str:
    """A codec's name as a legend has room for it."""
    return codec.replace("eden(bits=1)", "eden 1").replace("eden(bits=1,keep=0.25)", "eden 1, keep .25")
