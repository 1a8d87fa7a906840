"""``python -m hil.bench.selections``: leases drawn at random beside fair ones, a table on stdout.

Ready scenarios, all devices asked by lease; and ``heavy-tail`` with two digits on its slower half alone. The
time is until what the lower of the two ends at, less 0.005.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence

from hil.bench.learning_curve import LearningCurve, Yardstick, learning_curve
from hil.bench.markdown_table import table_rows
from hil.simulate.scenario import read_scenario
from hil.workload import Samples
from models.zoo import digits
from models.zoo.mlp import digits_artifact

__all__ = ["CASES", "main"]

CASES: Mapping[str, tuple[str, Sequence[str]]] = {
    "iid": ("iid", ()),
    "dirichlet": ("dirichlet", ()),
    "attackers": ("attackers", ()),
    "heavy-tail": ("heavy-tail", ()),
    "heavy-tail, 8 and 9 on slow devices": ("heavy-tail", ('partition="slow:8,9"',)),
}
KINDS = ("random", "fair")
SLACK = 0.005
_HEAD = """\
| scenario | selection | accuracy | worst class | virtual s to target | MB up to target |
| --- | --- | --- | --- | --- | --- |"""


def main(words: list[str] | None = None) -> int:
    """Print the table, a scenario after the other."""
    parser = argparse.ArgumentParser(prog="python -m hil.bench.selections", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="in each scenario")
    options = parser.parse_args(words)
    sys.stdout.write(f"{_HEAD}\n")
    for name in options.only or CASES:
        runs = {
            kind: [_run(name, kind, seed, options.set) for seed in range(options.seeds)] for kind in KINDS
        }
        sys.stdout.write(f"{table_rows(_row(name, kind, runs) for kind in KINDS)}\n")
        sys.stdout.flush()
    return 0


def _run(name: str, kind: str, seed: int, more: Sequence[str]) -> LearningCurve:
    scenario, changes = CASES[name]
    own = (f"seed={seed}", 'evaluation="none"', "held_out=0.0", "fleet.selection.participation=1.0")
    held_out = digits.split(seed)[1]
    measure = Yardstick(
        artifact=digits_artifact(hidden=32),
        samples=Samples(x=held_out.x, y=held_out.y),
        groups=held_out.y,
    )
    written = read_scenario(scenario, (*own, f'fleet.selection.kind="{kind}"', *changes, *more))
    return learning_curve(written, measure)


def _row(name: str, kind: str, runs: Mapping[str, Sequence[LearningCurve]]) -> Sequence[str]:
    goals = [min(curve.level for curve in pair) - SLACK for pair in zip(*runs.values(), strict=True)]
    there = [
        point
        for curve, goal in zip(runs[kind], goals, strict=True)
        if (point := curve.reached(goal)) is not None
    ]
    levels = [curve.level for curve in runs[kind]]
    worst = [curve.worst_level for curve in runs[kind]]
    return [
        name,
        f"`{kind}`",
        f"{statistics.median(levels):.3f} ({min(levels):.3f})",
        f"{statistics.median(worst):.3f} ({min(worst):.3f})",
        f"{statistics.median(point.virtual_s for point in there):.0f}" if there else "n/a",
        f"{statistics.median(point.bytes_up for point in there) / 1e6:.2f}" if there else "n/a",
    ]


if __name__ == "__main__":
    sys.exit(main())
