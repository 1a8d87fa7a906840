"""docs/benchmarks.md from the figures: a table per section, the bound it must hold, the command."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hil.bench.boards import boards_section
from hil.bench.buffer_memory import buffer_memory_section
from hil.bench.codec import codec_section
from hil.bench.feedback import feedback_section
from hil.bench.hard_fleets import hard_fleets_section
from hil.bench.markdown_table import table_rows
from hil.bench.peers_page import peers_section
from hil.bench.server_rules import server_rules_section
from hil.bench.simulator_page import simulator_section
from hil.bench.stability_page import stability_section
from hil.bench.target_page import target_section
from hil.bench.training_page import training_section

__all__ = ["page"]

_HEAD = """\
# Benchmarks

Written by `make bench`. The machine has two shared cores, so times vary from run to run: trust bytes,
counts, memory and ratios more than seconds.

Flower's figures, for comparison, were measured with Flower 1.41 on the same digits and kind of machine: ten IID clients, 20 rounds, accuracy 0.9222; 6.8 s a round; 34 to 40 KB up per client and round;
257 MiB idle and 385 MiB in training, all processes.
"""

_DEMO = """
## The demo at its defaults

`make bench ARGS="--only demo --seeds {seeds}"`: `lichen demo --seed 1` to `lichen demo --seed {seeds}`, on {broker}.

| figure | median | min | max | bound |
| --- | --- | --- | --- | --- |
{rows}

Against float32 it sends {ratio_all:.1f} times less with every MQTT byte counted, and {ratio_payload:.1f} times
less payload. Updates lost: {lost}; counted twice: {duplicated}.
"""

_TRAFFIC = """
## Bytes up per update

`make bench ARGS="--only traffic"`: one demo each. "All" is every MQTT byte that the devices sent, counted at
their sockets (connecting, fetching the model and all else included), per accepted update.

| model and codec | float32 | payload | all | smaller, payload | smaller, all | accuracy |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

Bounds: 2,410 parameters at one bit <= 800; 76,810 at one bit <= 11,000, with `keep=0.25` <= 4,000.
"""

_FOOTPRINT = """
## What an agent costs its device

`make bench ARGS="--only footprint"`: one agent of a real fleet, digits; resident memory (RSS) summed over its
processes, so that shared pages count more than once.

| runtime | supervisor at rest, MiB | peak of training, MiB | CPU s, first update | of it training |
| --- | --- | --- | --- | --- |
{rows}

At rest: connected, {rest_s:.0f} s after its first update, no worker left. The peak sums all processes. The CPU
is everything from the start of the agent to its first receipt: interpreter, connection, download, golden
steps, both processes. Bounds: <= 30 MiB at rest, <= 110 MiB at the peak, <= 0.7 s of CPU beyond training.
"""

_INGEST = """
## The coordinator under load

`make bench ARGS="--only ingest"`: {updates:,} real updates of 4,000 devices over 100 connections on {broker}, each
decoded, journalled, folded and receipted. In the same run the same connections send the same messages to an empty QoS 1
subscriber: a bare socket that only counts and acknowledges, and an ordinary client (paho-mqtt). Broker, publishers and
coordinator share two cores, and each accepted update is a second message through the broker: its receipt.

| figure | value |
| --- | --- |
| accepted updates per second | {accepted_per_s:,} |
| messages the broker delivers per second to a bare socket | {broker_per_s:,} |
| share of that | {share:.2f} |
| messages it delivers to an ordinary client | {ordinary_per_s:,} |
| share of that | {share_of_ordinary:.2f} |
| CPU of the coordinator per update, microseconds | {coordinator_cpu_us} |
| CPU of the broker per update, microseconds | {broker_cpu_us} |
| RSS of the coordinator, first and last, MiB | {rss_first_mib}, {rss_last_mib} |
| slope of RSS, KiB per 1,000 updates, first fifth left out | {slope_kib_per_1000} |
"""

_LOAD = """
## Two thousand devices

`make bench ARGS="--only load"`, or `python -m hil.load`: {devices:,} light devices, each with a connection of its own to
{broker}, make {updates:,} updates; half-way the whole process of the coordinator is stopped for {stall_s:g} seconds.
Peaks are what `/metrics` showed.

| figure | value |
| --- | --- |
| accepted, refused, sent again | {accepted:,}, {refusals:,}, {sent_again:,} |
| updates of one device, fewest and most | {fewest}, {most} |
| seconds from an update's first send to its receipt, median and longest | {wait_median_s}, {wait_longest_s} |
| devices on line at once | {online_peak:,} |
| messages waiting, in and out, most | {inbox_peak:,}, {outgoing_peak:,} |
| messages dropped, in and out | {inbox_dropped:,}, {outgoing_dropped:,} |
| RSS of the coordinator, most, MiB | {rss_peak_mib} |
| RSS of the broker, MiB | {broker_rss_mib} |
"""

_LINKS = """
## Bad links

`make bench ARGS="--only links"`: a model of {model:,} bytes goes down to one device and its update of {update:,} bytes
comes up, over each profile of `hil/profiles`, the connection reset every three seconds besides. A ratio is bytes over
those of the model or of the update: "arrived" is what came through, MQTT and every repetition included, "sent" also what
the line lost (a packet, or what was under way when the connection was reset). A slow profile runs in a world some times
as fast: rates times it, times by it, the resets of three seconds as they are.

| profile | times as fast | down: arrived | sent | up: arrived | sent | connections | resets |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Bound: <= 1.2 of what is sent, and nothing is begun anew. The basement's runs lie on both sides of it (1.17 to 1.23 in
four): its line loses three packets in a hundred and holds all behind them for 200 ms, and a reset takes what it holds.
"""

_ZOO = """
## The zoo

`make bench ARGS="--only zoo"`: the models of `lichen models zoo`. Step: batch 32, one thread, the fastest of 15
rounds in which all take turns, as a multiple of {unit} ({unit_ms} ms). Memory: the peak RSS of a real worker process
that trains two passes over 256 samples and encodes the update.

| model | parameters | artifact, bytes | {heads} |
| --- | --- | --- | {dashes} |
{rows}
"""

_SECTIONS: Mapping[str, Callable[[Any], str]] = {
    "training": training_section,
    "codec": codec_section,
    "feedback": feedback_section,
    "target": target_section,
    "hard_fleets": hard_fleets_section,
    "stability": stability_section,
    "server_rules": server_rules_section,
    "buffer_memory": buffer_memory_section,
    "simulator": simulator_section,
    "peers": peers_section,
    "boards": boards_section,
}


def page(figures: Mapping[str, Any]) -> str:
    """The whole page; a section without figures is left out."""
    parts = [_HEAD]
    if "demo" in figures:
        parts.append(_DEMO.format(rows=table_rows(_demo_rows(figures["demo"])), **figures["demo"]))
    if "traffic" in figures:
        parts.append(_TRAFFIC.format(rows=table_rows(_traffic_rows(figures["traffic"]))))
    if "footprint" in figures:
        cells = figures["footprint"]
        parts.append(_FOOTPRINT.format(rows=table_rows(_footprint_rows(cells)), rest_s=cells[0]["rest_s"]))
    if "ingest" in figures:
        parts.append(_INGEST.format(**figures["ingest"]))
    if "load" in figures:
        refusals = sum(figures["load"]["refused"].values())
        parts.append(_LOAD.format(**figures["load"], refusals=refusals))
    if "links" in figures:
        parts.append(_links(figures["links"]))
    if "zoo" in figures:
        parts.append(_zoo(figures["zoo"]))
    parts += [section(figures[name]) for name, section in _SECTIONS.items() if name in figures]
    return "".join(parts)


def _demo_rows(figures: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for key, name, form, bound in (
        ("accuracy", "accuracy on 360 held-out digits, version 20", "{:.4f}", "median >= 0.945"),
        ("seconds", "seconds from the command to the table", "{:.1f}", "<= 60"),
        ("bytes_up_per_update", "MQTT bytes a device sends per update", "{:.0f}", "<= 800"),
    ):
        values = [form.format(figures[f"{key}_{kind}"]) for kind in ("median", "min", "max")]
        yield [name, *values, bound]


def _traffic_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for row in rows:
        yield [
            row["case"],
            f"{row['float32']:,}",
            f"{row['payload']:,}",
            f"{row['all']:,.0f}",
            f"{row['ratio_payload']:.1f}x",
            f"{row['ratio_all']:.1f}x",
            f"{row['accuracy']:.3f}",
        ]


def _footprint_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for row in rows:
        names = ("runtime", "supervisor_mib", "peak_mib", "cpu_s", "training_cpu_s")
        yield ["n/a" if row[name] is None else str(row[name]) for name in names]


def _links(rows: Sequence[Mapping[str, Any]]) -> str:
    table = (
        [
            f"`{row['profile']}`",
            f"{row['faster']:g}",
            f"{row['down_arrived']:.3f}",
            f"{row['down_ratio']:.3f}",
            f"{row['up_arrived']:.3f}",
            f"{row['up_ratio']:.3f}",
            str(row["connections"]),
            str(row["resets"]),
        ]
        for row in rows
    )
    return _LINKS.format(model=rows[0]["model_bytes"], update=rows[0]["update_bytes"], rows=table_rows(table))


def _zoo(figures: Mapping[str, Any]) -> str:
    runtimes: Sequence[str] = figures["runtimes"]
    columns = [("step", "step, {}"), ("worker_mib", "worker, {}, MiB")]
    heads = [head.format(runtime) for _, head in columns for runtime in runtimes]
    rows = (
        [
            f"`{row['model']}`",
            f"{row['parameters']:,}",
            f"{row['bytes']:,}",
            *(str(row[key][runtime]) for key, _ in columns for runtime in runtimes),
        ]
        for row in figures["models"]
    )
    return _ZOO.format(
        unit=figures["unit"],
        unit_ms=figures["unit_ms"],
        heads=" | ".join(heads),
        dashes=" | ".join("---" for _ in heads),
        rows=table_rows(rows),
    )
