"""The section of docs/benchmarks.md on stability under load, from its figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hil.bench.markdown_table import table_rows

__all__ = ["stability_section"]

_SECTION = """
## Stability under load

`make bench ARGS="--only stability --row-seeds {seeds}"`: {devices} devices, each ready at any moment (lognormal times), and a
coordinator without any setting but K: digits, an MLP of 2,410 parameters, five local epochs at 0.2, one bit a
parameter, {updates:,} updates. *Load* is devices over K; *rounds* are synchronous rounds of the same K and as many
updates. Accuracies on 360 held-out digits: medians of {seeds} seeds, the lowest in brackets; how far the final one lies below the best
on the way, and below the rounds, is taken seed by seed, with the worst in brackets (negative: above).

| data | load | final | best | rounds | below best | below rounds | mean staleness | seeds that hold |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Bound, without tuning: the median at most 0.015 below the best and at most 0.02 below the rounds. {verdict} A load below 1
cannot fill a buffer: there the deadline closes it, and it is a round of all, as at load 1.
"""
_NAMES = {"iid": "IID", "dirichlet:0.3": "Dirichlet 0.3"}


def stability_section(figures: Mapping[str, Any]) -> str:
    """The section, with the cells that are beyond the bound."""
    rows: Sequence[Mapping[str, Any]] = figures["rows"]
    beyond = [f"{_NAMES[row['scheme']]} at load {row['load']:g}" for row in rows if not row["holds"]]
    verdict = f"Beyond it: {', '.join(beyond)}." if beyond else "All hold."
    return _SECTION.format(
        devices=figures["devices"],
        updates=figures["updates"],
        seeds=figures["seeds"],
        rows=table_rows(_rows(rows)),
        verdict=verdict,
    )


def _rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for row in rows:
        yield [
            _NAMES[row["scheme"]],
            f"{row['load']:g}",
            f"{row['final']:.3f} ({row['final_min']:.3f})",
            f"{row['best']:.3f}",
            f"{row['rounds']:.3f}",
            f"{row['fallen']:.3f} ({row['fallen_max']:.3f})",
            f"{row['behind']:.3f} ({row['behind_max']:.3f})",
            f"{row['staleness']:.1f}",
            f"{row['seeds_that_hold']} of {row['seeds']}",
        ]
