"""The bench ``hard_fleets``: a tenth of a fleet attacks, or rare classes are on slow devices alone.

Attackers: the scenario ``attackers`` under each aggregator. Rare classes: ``heavy-tail`` with the digits 8
and 9 on its slower half alone, where whoever counts fast devices oftener learns them late.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hil.bench.learning_curve import LearningCurve, Yardstick, learning_curve
from hil.bench.markdown_table import table_rows
from hil.bench.run_book import RunBook, RunKey
from hil.plots import Bars, grouped_bars
from hil.simulate.scenario import read_scenario
from hil.workload import Samples
from models.zoo import digits
from models.zoo.mlp import digits_artifact

__all__ = ["hard_fleets", "hard_fleets_section"]

PLOT = "benchmarks-hard-fleets-{}.svg"

RARE = "slow:8,9"
PACED = ("fleet.selection.participation=1.0",)
TRIALS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "attackers": {
        "mean, nobody attacks": ("attack.share=0.0",),
        "mean, not clipped": ("fleet.defence.clip=false",),
        "mean": (),
        "trimmed_mean": ("fleet.aggregator.kind=trimmed_mean", "fleet.buffer.min_updates=5"),
        "median": ("fleet.aggregator.kind=median", "fleet.buffer.min_updates=3"),
        "krum": (
            "fleet.aggregator.kind=krum",
            "fleet.aggregator.attackers=2",
            "fleet.buffer.min_updates=7",
        ),
    },
    "heavy-tail": {
        "fedbuff": PACED,
        "fedbuff, fair": (*PACED, "fleet.selection.kind=fair"),
        "ca2fl": (*PACED, "fleet.selection.kind=random", "fleet.aggregator.kind=ca2fl"),
        "ca2fl, fair": (*PACED, "fleet.selection.kind=fair", "fleet.aggregator.kind=ca2fl"),
        "rounds, over-selected": (*PACED, "fleet.buffer.kind=rounds"),
        "rounds, all": (
            *PACED,
            "fleet.buffer.kind=rounds",
            "fleet.buffer.over_selection=1.0",
            "fleet.buffer.flush_after_s=0",
        ),
    },
}
"""By scenario and name, what is set in it."""
_SECTION = """
## Hard fleets

`make bench ARGS="--only hard_fleets --target-seeds {seeds}"`: digits, an MLP of 2,410 parameters, one bit;
medians over the seeds, the minimum in brackets; accuracy and worst class are means over the last quarter of a
run. First the scenario `attackers`: ten of a hundred devices send the opposite of what they learned, ten
times as large. Norms are clipped unless it is said.

| aggregator | accuracy | worst class |
| --- | --- | --- |
{attackers}

![Attackers: accuracy, and of the worst digit](benchmarks-hard-fleets-attackers.svg)

Then `heavy-tail`, where the slower half of the devices alone has the digits 8 and 9. *At
{seconds:.0f} s*: of the last point until the virtual time at which the first run of FedBuff ended.

| aggregation | accuracy | worst class | worst class at {seconds:.0f} s | virtual s |
| --- | --- | --- | --- | --- |
{rare}

![Rare digits: accuracy, and of the worst digit](benchmarks-hard-fleets-heavy-tail.svg)

Wanted: a worst class of CA2FL or `fair` at least 0.03 above FedBuff's.
"""


def hard_fleets(book: Path, seeds: int = 5) -> dict[str, Any]:
    """A row for each trial; runs that ``book`` does not have yet are made first. Its plots go beside it."""
    kept = RunBook(book)
    runs = {
        scenario: {name: [_kept(kept, scenario, name, seed) for seed in range(seeds)] for name in trials}
        for scenario, trials in TRIALS.items()
    }
    seconds = runs["heavy-tail"]["fedbuff"][0].points[-1].virtual_s
    rows = {
        scenario: [_row(name, curves, seconds) for name, curves in trials.items()]
        for scenario, trials in runs.items()
    }
    for scenario, title in (
        ("attackers", "ten of a hundred devices attack"),
        ("heavy-tail", "8 and 9 on slow devices alone"),
    ):
        plot = _plot(rows[scenario], title)
        book.with_name(PLOT.format(scenario)).write_text(plot + "\n", encoding="utf-8")
    return {"seeds": seeds, "seconds": seconds, **rows}


def _plot(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    return grouped_bars(
        [row["name"] for row in rows],
        [
            Bars(
                name=name,
                values=[row[key]["median"] for row in rows],
                lowest=[row[key]["min"] for row in rows],
            )
            for name, key in (("all", "accuracy"), ("worst digit", "worst"))
        ],
        title=f"{title}: accuracy at the end",
        x_label="median over the seeds, line: minimum",
        y_label="accuracy",
    )


def _kept(book: RunBook, scenario: str, name: str, seed: int) -> LearningCurve:
    key: RunKey = {"scenario": scenario, "trial": name, "seed": seed}
    curve = book.find(key)
    if curve is None:
        curve = _run(scenario, TRIALS[scenario][name], seed)
        book.keep(key, curve)
        said = f"{scenario}, {name}, seed {seed}"
        sys.stderr.write(f"{said}: {curve.level:.4f} (worst {curve.worst_level:.4f})\n")
    return curve


def _run(scenario: str, changes: Sequence[str], seed: int) -> LearningCurve:
    rare = (f'partition="{RARE}"',) if scenario == "heavy-tail" else ()
    own = (f"seed={seed}", 'evaluation="none"', "held_out=0.0", *rare, *changes)
    held_out = digits.split(seed)[1]
    measure = Yardstick(
        artifact=digits_artifact(hidden=32),
        samples=Samples(x=held_out.x, y=held_out.y),
        groups=held_out.y,
    )
    return learning_curve(read_scenario(scenario, own), measure)


def _row(name: str, curves: Sequence[LearningCurve], seconds: float) -> dict[str, Any]:
    then = [curve.within(seconds).points[-1].worst for curve in curves]
    return {
        "name": name,
        "accuracy": _spread([curve.level for curve in curves]),
        "worst": _spread([curve.worst_level for curve in curves]),
        "worst_then": _spread(then),
        "virtual_s": statistics.median(curve.points[-1].virtual_s for curve in curves),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values)}


def hard_fleets_section(figures: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    return _SECTION.format(
        seeds=figures["seeds"],
        seconds=figures["seconds"],
        attackers=table_rows(
            [row["name"], *_cells(row, "accuracy", "worst")] for row in figures["attackers"]
        ),
        rare=table_rows(
            [row["name"], *_cells(row, "accuracy", "worst", "worst_then"), f"{row['virtual_s']:.0f}"]
            for row in figures["heavy-tail"]
        ),
    )


def _cells(row: Mapping[str, Any], *names: str) -> Iterator[str]:
    return (f"{row[name]['median']:.3f} ({row[name]['min']:.3f})" for name in names)
