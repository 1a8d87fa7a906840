"""The bench ``target``: bytes up and virtual time to a target accuracy, from the runs of ``target_grid``.

A codec's target is what float32 ends at with the same aggregation and seed, less 0.005. Times are compared at
one target for all aggregations: that of float32 in rounds that wait for all; and at the lowest of all
aggregations.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hil.bench.learning_curve import LearningCurve
from hil.bench.target_grid import AGGREGATIONS, CODECS, UPDATES, WORKLOADS, Cell, cells, measured
from hil.bench.target_plots import write_plots

__all__ = ["DEFAULT", "SLACK", "WAITING", "target", "target_figures"]

DEFAULT = "eden(bits=1)"
WAITING = "rounds, all"
SLACK = 0.005
Curves = Mapping[Cell, LearningCurve]


def target(book: Path, seeds: int = 5) -> dict[str, Any]:
    """The section's figures; runs that ``book`` does not have yet are made first. Its plots go beside
    ``book``."""
    curves = measured(book, list(cells(seeds)))
    figures = target_figures(curves)
    write_plots(book.parent, curves, figures["rows"])
    return figures


def target_figures(curves: Curves) -> dict[str, Any]:
    """Rows by workload, aggregation and codec, and how many times as long as ``fedbuff`` others took."""
    return {
        "seeds": len({cell.seed for cell in curves}),
        "updates": dict(UPDATES),
        "left_out": [
            *(name for name in WORKLOADS if all(cell.workload != name for cell in curves)),
            *(codec for codec in CODECS if all(cell.codec != codec for cell in curves)),
            *(
                f"{codec} on {name}"
                for name in {cell.workload: None for cell in curves}
                for codec in {cell.codec: None for cell in curves}
                if all((cell.workload, cell.codec) != (name, codec) for cell in curves)
            ),
        ],
        "rows": [
            _row(curves, runs)
            for workload in WORKLOADS
            for aggregation in AGGREGATIONS
            for codec in CODECS
            if (runs := _runs(curves, workload, aggregation, codec))
        ],
        "slower": [
            {"workload": workload, "aggregation": aggregation, **_slower(curves, runs)}
            for workload in WORKLOADS
            for aggregation in AGGREGATIONS
            if aggregation != "fedbuff" and (runs := _runs(curves, workload, aggregation, DEFAULT))
        ],
    }


def _runs(curves: Curves, workload: str, aggregation: str, codec: str) -> list[Cell]:
    wanted = workload, aggregation, codec
    return [cell for cell in curves if (cell.workload, cell.aggregation, cell.codec) == wanted]


def _row(curves: Curves, runs: Sequence[Cell]) -> dict[str, Any]:
    pairs = []
    for cell in runs:
        reference = curves.get(replace(cell, codec="float32"))
        if reference is not None:
            own = reference.level - SLACK
            pairs.append((reference.reached(own), curves[cell].reached(own)))
    both = [(there, here) for there, here in pairs if there is not None and here is not None]
    times = [
        point.virtual_s
        for cell in runs
        if (goal := _common(curves, cell)) is not None and (point := curves[cell].reached(goal)) is not None
    ]
    first = runs[0]
    return {
        "workload": first.workload,
        "aggregation": first.aggregation,
        "codec": first.codec,
        "seeds": len(runs),
        "reached": len(both),
        "reached_common": len(times),
        "payload": _spread([there.payload / here.payload for there, here in both]),
        "all": _spread([there.bytes_up / here.bytes_up for there, here in both]),
        "payload_bytes": _spread([here.payload for _, here in both], worst=max),
        "bytes_up": _spread([here.bytes_up for _, here in both], worst=max),
        "updates": _spread([here.updates for _, here in both], worst=max),
        "virtual_s": _spread(times, worst=max),
        "accuracy": _spread([curves[cell].level for cell in runs]),
        "worst": _spread([curves[cell].worst_level for cell in runs]),
    }


def _slower(curves: Curves, runs: Sequence[Cell]) -> dict[str, Any]:
    """At both targets."""
    common, lowest = _ratios(curves, runs, _common), _ratios(curves, runs, _lowest)
    return {
        "seeds": len(common),
        "times": _spread(common),
        "seeds_lowest": len(lowest),
        "times_lowest": _spread(lowest),
    }


def _ratios(
    curves: Curves, runs: Sequence[Cell], target: Callable[[Curves, Cell], float | None]
) -> list[float]:
    """Of each seed in which both got there."""
    ratios = []
    for cell in runs:
        goal, other = target(curves, cell), curves.get(replace(cell, aggregation="fedbuff"))
        if goal is None or other is None:
            continue
        there, here = curves[cell].reached(goal), other.reached(goal)
        if there is not None and here is not None:
            ratios.append(there.virtual_s / here.virtual_s)
    return ratios


def _common(curves: Curves, cell: Cell) -> float | None:
    reference = curves.get(replace(cell, aggregation=WAITING, codec="float32"))
    return None if reference is None else reference.level - SLACK


def _lowest(curves: Curves, cell: Cell) -> float | None:
    levels = [
        curve.level
        for name in AGGREGATIONS
        if (curve := curves.get(replace(cell, aggregation=name, codec="float32"))) is not None
    ]
    return min(levels) - SLACK if levels else None


def _spread(
    values: Sequence[float], worst: Callable[[Sequence[float]], float] = min
) -> dict[str, float] | None:
    """The median, and the least favourable."""
    return {"median": statistics.median(values), "worst": worst(values)} if values else None
