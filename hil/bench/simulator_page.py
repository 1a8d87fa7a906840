"""The section of docs/benchmarks.md on how fast and how large virtual fleets are, from its figures."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hil.bench.markdown_table import table_rows

__all__ = ["simulator_section"]

_SECTION = """
## Virtual fleets

`make bench ARGS="--only simulator{largest}"`: {devices:,} devices on the digits, an MLP of 2,410 parameters, two steps on 14
samples, one bit a parameter; every device takes part in each of {versions} versions. The loop of plain NumPy does the same
training and averages, without agent, codec, protocol or store. Each row is a process of its own with one thread;
updates are accepted ones per CPU second, "later" without the first version; the last column is the loop's "later" over
the row's.

| way | updates per CPU s | later | first version, CPU s | accuracy | times the loop |
| --- | --- | --- | --- | --- | --- |
{runs}

Larger fleets, stacked, one version: "heard" are devices of which an update was accepted, "resident" is all that the
process holds at the end, interpreter, libraries and coordinator too, "wanted" is 80 MiB and 10 KB a device; the last
column is what a device adds to the fleet of the row before.

| devices | heard | updates per CPU s | resident, MiB | wanted, MiB | bytes per further device |
| --- | --- | --- | --- | --- | --- |
{sizes}

The same {devices:,} devices over a real mosquitto, each with a connection of its own (guide-simulation.md), beside the
broker in memory: accepted updates per second of the wall, from the opened artifact to the last version; the mosquitto has
a core of its own.

| way | broker | updates per second | accuracy |
| --- | --- | --- | --- |
{over_broker}

Wanted: >= 1,200 updates a second at {devices:,} devices, >= 2,000 stacked; the first version within 1 s; at most 80 MiB and 10 KB a
device; the cost of an update at 100,000 devices at most 1.5 times that at 1,000; >= 600 updates
a second over a real broker.
"""
_FIXED_MIB, _BYTES_A_DEVICE = 80, 10_000
_WAYS = {
    "loop": "loop of plain NumPy",
    "onnx": "virtual devices, ONNX Runtime",
    "numpy": "virtual devices, NumPy",
    "stacked": "virtual devices, NumPy, trained in stacks",
}


def simulator_section(figures: Mapping[str, Any]) -> str:
    """The section."""
    runs: Sequence[Mapping[str, Any]] = figures["runs"]
    sizes: Sequence[Mapping[str, Any]] = figures["sizes"]
    return _SECTION.format(
        largest=" --largest" if sizes[-1]["devices"] >= 100_000 else "",
        devices=runs[0]["devices"],
        versions=figures["versions"],
        runs=table_rows(_runs(runs)),
        sizes=table_rows(
            [
                f"{row['devices']:,}",
                f"{row['devices_heard']:,}",
                f"{row['per_cpu_s']:,}",
                f"{row['resident_mib']:,}",
                f"{_FIXED_MIB + row['devices'] * _BYTES_A_DEVICE / 2**20:,.0f}",
                _further(row, before),
            ]
            for before, row in itertools.pairwise([None, *sizes])
            if row is not None
        ),
        over_broker=table_rows(
            [
                _WAYS[row["way"]],
                "mosquitto" if "broker" in row else "in memory",
                f"{row['per_wall_s']:,}",
                f"{row['accuracy']:.3f}",
            ]
            for row in figures["over_broker"]
        ),
    )


def _further(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    if before is None:
        return ""
    grown = (row["resident_mib"] - before["resident_mib"]) * 2**20
    return f"{grown / (row['devices'] - before['devices']):,.0f}"


def _runs(runs: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    (loop,) = [row for row in runs if row["way"] == "loop"]
    for row in runs:
        yield [
            _WAYS.get(row["way"], row["way"]),
            f"{row['per_cpu_s']:,}",
            f"{row['later_per_cpu_s']:,}",
            f"{row['first_version_cpu_s']:.2f}",
            f"{row['accuracy']:.3f}",
            f"{loop['later_per_cpu_s'] / row['later_per_cpu_s']:.1f}",
        ]
