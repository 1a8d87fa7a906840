"""The demo's report: ``report.json`` and one page that needs nothing else."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hil.demo.figures import Figures
from hil.demo.screen import of_devices, shown
from hil.page_style import PAGE_STYLE
from hil.plots import Points, bar_chart, line_chart

__all__ = ["write_report"]


def write_report(folder: Path, figures: Figures) -> Path:
    """Write both files into ``folder``; the path of the page."""
    (folder / "report.json").write_text(json.dumps(figures.to_body(), indent=2) + "\n")
    page = folder / "report.html"
    page.write_text("\n".join(_page(figures)), encoding="utf-8")
    return page


def _page(figures: Figures) -> Iterator[str]:
    summary = figures.summary
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>Lichen demo</title><style>{PAGE_STYLE}</style></head><body><main>"
    yield "<h1>Lichen demo</h1>"
    yield (
        f'<p class="sub">{summary["devices"]} devices as real processes trained the '
        f"{summary['parameters']:,} parameters of {escape(str(summary['model']))} "
        f"over {escape(str(summary['broker']))}; "
        f"{escape(str(summary['codec']))}, {escape(str(summary['partition']))}, seed {summary['seed']}.</p>"
    )
    yield f'<div class="tiles">{"".join(_tiles(figures))}</div>'
    if summary["caveat"]:
        yield f'<p class="sub">The held-out file is measured {escape(summary["caveat"])}.</p>'
    yield '<div class="plots">'
    for plot in _plots(figures):
        yield f'<div class="plot">{plot}</div>'
    yield "</div>"
    yield from _runtimes(summary)
    yield from _devices(figures)
    yield "</main></body></html>"


def _tiles(figures: Figures) -> Iterator[str]:
    summary = figures.summary
    metric = str(summary["metric"])
    score = summary["metrics"].get(metric)
    tiles = [
        (
            shown(score) if score is not None else "-",
            f"{metric}, {summary['held_out_examples']} held-out samples",
        ),
        *_of_devices(summary),
        (str(summary["versions"]), f"versions in {summary['seconds']:.0f} s"),
        (str(summary["updates_accepted"]), f"updates accepted, {summary['updates_refused']} refused"),
        (
            f"{summary['bytes_up_per_update']:.0f} B" if summary["bytes_up_per_update"] else "n/a",
            "sent per update, every MQTT byte",
        ),
        (
            f"{summary['ratio_all']:.1f}x" if summary["ratio_all"] else "n/a",
            f"smaller than float32 ({summary['ratio_payload']:.1f}x the payload)",
        ),
        (f"{summary['lost']} / {summary['duplicated']}", "updates lost / counted twice"),
    ]
    for value, label in tiles:
        yield f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _of_devices(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the coordinator measures another model than devices use, what they say of theirs."""
    said, metric = summary["reported"], summary["metric"]
    if summary["caveat"] and metric in said.get("metrics", {}):
        yield shown(said["metrics"][metric]), f"{metric} {of_devices(said)}"


def _plots(figures: Figures) -> Iterator[str]:
    metric = str(figures.summary["metric"])
    scored = [point for point in figures.versions if metric in point.metrics]
    scores = [point.metrics[metric] for point in scored]
    reported = [point for point in figures.versions if metric in point.device_metrics]
    yield line_chart(
        [
            Points(name="held-out file", x=[float(point.version) for point in scored], y=scores),
            Points(
                name="devices' own held-out samples",
                x=[float(point.version) for point in reported],
                y=[point.device_metrics[metric] for point in reported],
            ),
        ],
        title=f"{metric.capitalize()} over versions",
        x_label="version",
        y_label=metric,
    )
    read = {point.bytes_up / 1000: point.metrics[metric] for point in scored}  # the newest at each reading
    yield line_chart(
        [Points(name=metric, x=list(read), y=list(read.values()))],
        title=f"{metric.capitalize()} over bytes",
        x_label="KB sent by all devices, every MQTT byte",
        y_label=metric,
    )
    levels = range(max(figures.staleness, default=0) + 1)
    yield bar_chart(
        [str(level) for level in levels],
        [float(figures.staleness.get(level, 0)) for level in levels],
        title="Staleness",
        x_label="versions committed since the update's base",
        y_label="updates",
    )
    yield bar_chart(
        [share.device for share in figures.devices],
        [float(share.updates) for share in figures.devices],
        title="Contribution per device",
        x_label="device",
        y_label="updates folded",
    )


def _runtimes(summary: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(
        ("runtime", "devices", "updates accepted", "updates folded"),
        [
            (name or "-", counts["devices"], counts["accepted"], counts["folded"])
            for name, counts in summary["runtimes"].items()
        ],
    )
    for name, reason in summary["runtimes_absent"].items():
        yield f'<p class="sub">{escape(name)} took no part: {escape(reason)}</p>'


def _devices(figures: Figures) -> Iterator[str]:
    yield from _table(
        ("device", "runtime", "training examples", "updates folded", "bytes sent"),
        [
            (share.device, share.runtime or "-", share.examples, share.updates, f"{share.bytes_up:,}")
            for share in figures.devices
        ],
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"<table><tr>{''.join(f'<th>{heading}</th>' for heading in headings)}</tr>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>"
    yield "</table>"
