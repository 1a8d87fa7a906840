"""The section of docs/benchmarks.md that sets virtual fleets beside Flower's simulation, from its figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hil.bench.markdown_table import table_rows

__all__ = ["peers_section"]

_SECTION = """
## Beside Flower's simulation

`make bench-peers`, in an environment of its own: Flower {flwr} on Ray {ray}, Python {python}, NumPy {numpy}, {cores} cores. The
same work in the same run: {devices:,} devices on the digits, 14 samples each, an MLP of 2,410 parameters, two steps of
SGD; each device takes part in each of {versions} rounds, and the first is not counted. Four processes that take turns,
medians of {runs} runs. CPU is that of all processes of a way: trust it more than seconds where runs lie far apart, for then
the machine had other work.

| way | updates per second | of each run | updates per CPU s | seconds to the first version | accuracy |
| --- | --- | --- | --- | --- | --- |
{rows}

Flower as its guide has it for small clients: one CPU for each client and so an actor for each core, data kept in the actors,
FedAvg, no federated evaluation, the loop's own training code; weights travel as float32 within the machine. The other
three use one core. The loop only trains and averages; a virtual fleet trains by the artifact's graph, encodes to one bit, sends, journals and
receipts every update besides.
"""
_WAYS = {
    "loop": "loop of plain NumPy",
    "numpy": "virtual devices",
    "stacked": "virtual devices, trained in stacks",
    "flower": "Flower's simulation",
}


def peers_section(figures: Mapping[str, Any]) -> str:
    """The section."""
    ways: Sequence[Mapping[str, Any]] = figures["ways"]
    return _SECTION.format(
        **figures["packages"],
        cores=figures["cores"],
        devices=figures["devices"],
        versions=figures["versions"],
        runs=len(ways[0]["runs"]),
        rows=table_rows(_rows(ways)),
    )


def _rows(ways: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for row in ways:
        yield [
            _WAYS[row["way"]],
            f"{row['updates_per_s']:,.0f}",
            ", ".join(f"{run:,.0f}" for run in row["runs"]),
            f"{row['updates_per_cpu_s']:,.0f}",
            f"{row['first_version_s']:.1f}",
            f"{row['accuracy']:.3f}",
        ]
