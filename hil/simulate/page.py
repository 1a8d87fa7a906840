"""Pages of simulations: one for each run, one that compares several; each stands alone."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from hil.page_style import PAGE_STYLE
from hil.plots import COLOURS, Points, bar_chart, line_chart
from hil.simulate.result import SimulationResult, VersionRow

__all__ = ["write_comparison", "write_run"]


def write_run(folder: Path, result: SimulationResult, *, summary: str = "") -> Path:
    """Write NAME.json and NAME.html into ``folder``; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.name}.json").write_text(
        json.dumps(result.to_body(), indent=2) + "\n", encoding="utf-8"
    )
    page = folder / f"{result.name}.html"
    body = [
        f'<div class="tiles">{"".join(_tiles(result))}</div>',
        '<div class="plots">',
        *(f'<div class="plot">{plot}</div>' for plot in _plots([result])),
        "</div>",
    ]
    told = f"{summary}. " if summary else ""
    page.write_text(
        "\n".join(_page(f"Simulation: {result.name}", told + _said(result), body)), encoding="utf-8"
    )
    return page


def write_comparison(folder: Path, results: Sequence[SimulationResult]) -> Path:
    """Write comparison.html into ``folder``; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "comparison.html"
    body = [*_table(results), '<div class="plots">']
    body += [f'<div class="plot">{plot}</div>' for plot in _plots(results)]
    body.append("</div>")
    told = f"{len(results)} runs side by side."
    if len(results) > len(COLOURS):
        told += f" The plots show the first {len(COLOURS)}."
    page.write_text("\n".join(_page("Simulations compared", told, body)), encoding="utf-8")
    return page


def shown_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def shown_time(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def shown_share(value: float | None) -> str:
    """An accuracy for people."""
    return f"{100 * value:.1f} %" if value is not None else "-"


def shown_loss(value: float | None) -> str:
    """A loss for people."""
    return f"{value:.4g}" if value is not None else "-"


def _page(title: str, told: str, body: Sequence[str]) -> Iterator[str]:
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head><body><main>"
    yield f'<h1>{escape(title)}</h1><p class="sub">{escape(told)}</p>'
    yield from body
    yield "</main></body></html>"


def _said(result: SimulationResult) -> str:
    return (
        f"{result.devices:,} virtual devices trained {result.parameters:,} parameters; {result.codec}, "
        f"seed {result.seed}, state {result.state_hash[:16]}."
    )


def _tiles(result: SimulationResult) -> Iterator[str]:
    tiles = [
        *_quality(result),
        (str(result.versions), f"versions in {shown_time(result.virtual_s)} of virtual time"),
        (f"{result.accepted:,}", f"updates accepted, {sum(result.refused.values())} refused"),
        (f"{result.devices_heard:,}", f"of {result.devices:,} devices had an update accepted"),
        (shown_bytes(result.bytes_up), "sent by devices, every MQTT byte"),
        (shown_bytes(result.bytes_down), "received by devices"),
        (f"{result.float32_ratio:.1f}x", "smaller payloads than float32"),
        (str(result.losses), "trainings lost with the power"),
    ]
    if result.target is not None:
        reached = shown_time(result.reached.virtual_s) if result.reached else "not reached"
        tiles.append((reached, f"to an accuracy of {shown_share(result.target)}"))
    for value, label in tiles:
        yield f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _quality(result: SimulationResult) -> Iterator[tuple[str, str]]:
    """How good the model is, by what it tells: the share of right answers, or the loss."""
    source = {"coordinator": "on held-out samples", "devices": "as devices report"}
    said = source.get(result.accuracy_source, "not measured")
    if result.accuracy is None and result.loss is not None:
        yield shown_loss(result.loss), f"mean loss, {said}"
        return
    yield shown_share(result.accuracy), f"accuracy, {said}"
    if result.worst_group is not None:
        worst = min(result.by_group, key=lambda group: result.by_group[group])
        yield shown_share(result.worst_group), f"accuracy on {result.groups_of} {worst}, the worst served"


def _plots(results: Sequence[SimulationResult]) -> Iterator[str]:
    shown = results[: len(COLOURS)]
    told = any(row.accuracy is not None for result in shown for row in result.history)
    quality = "accuracy" if told else "loss"
    target = results[0].target if told and len({result.target for result in results}) == 1 else None
    by_time, by_bytes, versions = [], [], []
    for result in shown:
        name = quality if len(shown) == 1 else result.name
        rows = [row for row in result.history if getattr(row, quality) is not None]
        good = [getattr(row, quality) for row in rows]
        by_time.append(Points(name=name, x=[_minutes(row) for row in rows], y=good))
        by_bytes.append(Points(name=name, x=[row.bytes_up / 1e6 for row in rows], y=good))
        minutes = [_minutes(row) for row in result.history]
        versions.append(Points(name=name, x=minutes, y=[float(row.version) for row in result.history]))
    if len(shown) == 1:
        by_time += _worst(shown[0])
    title = quality.capitalize()
    yield line_chart(
        by_time, title=f"{title} over time", x_label="virtual minutes", y_label=quality, target=target
    )
    yield line_chart(
        by_bytes,
        title=f"{title} over what was sent",
        x_label="MB up, all devices",
        y_label=quality,
        target=target,
    )
    yield line_chart(versions, title="Versions", x_label="virtual minutes", y_label="version")
    if len(shown) == 1 and shown[0].by_group:
        groups = shown[0].by_group
        yield bar_chart(
            list(groups),
            [round(100 * value, 1) for value in groups.values()],
            title=f"Accuracy by {shown[0].groups_of}",
            x_label=shown[0].groups_of,
            y_label="accuracy in %",
        )


def _worst(result: SimulationResult) -> Iterator[Points]:
    """The line of the group that is served worst, which is not always the same."""
    rows = [row for row in result.history if row.worst_group is not None]
    if rows:
        worst = [row.worst_group or 0.0 for row in rows]
        yield Points(name=f"worst {result.groups_of}", x=[_minutes(row) for row in rows], y=worst)


def _minutes(row: VersionRow) -> float:
    return row.virtual_s / 60


def _table(results: Sequence[SimulationResult]) -> Iterator[str]:
    headings = (
        "run",
        "accuracy",
        "worst group",
        "loss",
        "target at",
        "versions",
        "updates",
        "virtual time",
        "up",
        "down",
        "lost",
    )
    yield "<table><tr>" + "".join(f"<th>{name}</th>" for name in headings) + "</tr>"
    for result in results:
        cells = (
            result.name,
            shown_share(result.accuracy),
            f"{shown_share(result.worst_group)}{f' ({result.groups_of})' if result.by_group else ''}",
            shown_loss(result.loss),
            shown_time(result.reached.virtual_s) if result.reached else "-",
            str(result.versions),
            f"{result.accepted:,}",
            shown_time(result.virtual_s),
            shown_bytes(result.bytes_up),
            shown_bytes(result.bytes_down),
            str(result.losses),
        )
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table>"
