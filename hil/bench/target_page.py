"""The section of docs/benchmarks.md on bytes and time to a target accuracy, from its figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hil.bench.markdown_table import table_rows
from hil.bench.target_grid import K
from hil.bench.target_plots import PLOTS, plot_name

__all__ = ["target_section"]

_SECTION = """
## Bytes and time to a target accuracy

`make bench ARGS="--only target --target-seeds {seeds}"`: the scenario `heavy-tail`, digits (an MLP of
76,810 parameters, {updates[digits]:,} updates a run, K = {k[digits]}) and motion (a CNN of 8,551, {updates[motion]:,}
updates, K = {k[motion]}: more versions, of which it needs more). *Target*: what float32 ends at with the same aggregation and seed, less
0.005; accuracies are means over 60 updates. *Smaller*: bytes that float32 had sent when it was there, over those
of the codec. *Time*: virtual seconds until what float32 ends at in rounds that wait for all, less 0.005. *Accuracy*
and *worst* (class of the digits, person of motion) at the end: the last quarter. Medians over the seeds that got
there, with the least favourable in brackets; *seeds there* says of how many that were run.

| data | aggregation | codec | seeds there | smaller, payload | smaller, all MQTT | updates | time, s | accuracy | worst |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

{plots}

How many times as long as FedBuff others take at one bit, seed by seed: to that common target, and to what float32 ends at
in the aggregation that ends lowest, less 0.005.

| data | aggregation | seeds | times as long | seeds | to the lowest |
| --- | --- | --- | --- | --- | --- |
{slower}

Wanted on the digits: payload >= 28 times smaller at one bit and >= 90 with `keep=0.25`; all MQTT bytes >= 25 and
>= 70; FedBuff >= 3 times as fast as over-selected rounds and >= 5 times as fast as rounds that wait for all.

A round that closes gives up what is still in training, and draws the next cohort from all (guide-pacing.md): whoever is
slow is asked as often as others, and answers in time less often. FedBuff and CA2FL have three buffers in flight, FedAsync
ten updates.
{left_out}"""


def target_section(figures: Mapping[str, Any]) -> str:
    """The section."""
    left_out = ", ".join(f"`{codec}`" for codec in figures["left_out"])
    return _SECTION.format(
        seeds=figures["seeds"],
        updates=figures["updates"],
        k=K,
        rows=table_rows(_rows(figures["rows"])),
        plots="\n".join(_plots(figures["rows"])),
        slower=table_rows(_slower(figures["slower"])),
        left_out=f"\nNot run: {left_out}.\n" if left_out else "",
    )


def _plots(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for workload in dict.fromkeys(row["workload"] for row in rows):
        for kind, told in PLOTS.items():
            yield f"![{workload}: {told}]({plot_name(workload, kind)})"


def _rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for row in rows:
        yield [
            row["workload"],
            row["aggregation"],
            f"`{row['codec']}`",
            f"{row['reached']} of {row['seeds']}",
            _spread(row["payload"], ".1f"),
            _spread(row["all"], ".1f"),
            _spread(row["updates"], ".0f"),
            _spread(row["virtual_s"], ".0f"),
            _spread(row["accuracy"], ".3f"),
            _spread(row["worst"], ".3f"),
        ]


def _slower(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for row in rows:
        yield [
            row["workload"],
            row["aggregation"],
            str(row["seeds"]),
            _spread(row["times"], ".1f"),
            str(row["seeds_lowest"]),
            _spread(row["times_lowest"], ".1f"),
        ]


def _spread(value: Mapping[str, float] | None, form: str) -> str:
    return "n/a" if value is None else f"{value['median']:{form}} ({value['worst']:{form}})"
