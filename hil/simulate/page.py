"""Pages of simulations: one for each run, one that compares several; each stands alone."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hil.page_style import PAGE_STYLE
from hil.plots import COLOURS, Points, bar_chart, line_chart
from hil.simulate.result import SimulationResult

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
    told = f"{summary[0].upper()}{summary[1:]}. " if summary else ""
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
    clock = _Unit.of_times([row.virtual_s for result in shown for row in result.history])
    sent = _Unit.of_bytes([row.bytes_up for result in shown for row in result.history])
    by_time, by_bytes, versions = [], [], []
    worst: list[Points] = []
    for result in shown:
        name = quality if len(shown) == 1 else result.name
        rows = [row for row in result.history if getattr(row, quality) is not None]
        good = [getattr(row, quality) for row in rows]
        by_time.append(Points(name=name, x=clock.of([row.virtual_s for row in rows]), y=good))
        by_bytes.append(Points(name=name, x=sent.of([row.bytes_up for row in rows]), y=good))
        times = clock.of([row.virtual_s for row in result.history])
        versions.append(Points(name=name, x=times, y=[float(row.version) for row in result.history]))
        worst += _worst(result, clock, name=None if len(shown) == 1 else result.name)
    # Side by side on one axis, the longest of very different runs would leave the others no room.
    ends = [points.x[-1] for points in by_time if points.x and points.x[-1] > 0]
    apart = len(ends) > 1 and max(ends) > 3 * min(ends)
    title = quality.capitalize()
    yield line_chart(
        by_time + (worst if len(shown) == 1 else []),
        title=f"{title} over time",
        x_label=f"virtual {clock.name}",
        y_label=quality,
        target=target,
        log_x=apart,
    )
    if len(shown) > 1 and worst:
        group = _group(shown)
        yield line_chart(
            worst,
            title=f"Accuracy on the worst {group} over time",
            x_label=f"virtual {clock.name}",
            y_label="accuracy",
            log_x=apart,
        )
    yield line_chart(
        by_bytes,
        title=f"{title} over what was sent",
        x_label=f"{sent.name} up, all devices",
        y_label=quality,
        target=target,
    )
    yield line_chart(versions, title="Versions", x_label=f"virtual {clock.name}", y_label="version")
    if len(shown) == 1 and shown[0].by_group:
        groups = shown[0].by_group
        yield bar_chart(
            list(groups),
            [round(100 * value, 1) for value in groups.values()],
            title=f"Accuracy by {shown[0].groups_of}",
            x_label=shown[0].groups_of,
            y_label="accuracy in %",
        )


def _worst(result: SimulationResult, clock: "_Unit", *, name: str | None) -> Iterator[Points]:
    """The line of the group that is served worst, which is not always the same."""
    rows = [row for row in result.history if row.worst_group is not None]
    if rows:
        worst = [row.worst_group or 0.0 for row in rows]
        times = clock.of([row.virtual_s for row in rows])
        yield Points(name=name or f"worst {result.groups_of}", x=times, y=worst)


def _group(results: Sequence[SimulationResult]) -> str:
    """What groups are called, where all call them the same."""
    names = {result.groups_of for result in results if result.by_group}
    return names.pop() if len(names) == 1 else "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """A unit in which the largest of some numbers is easily read."""

    name: str
    size: float

    @classmethod
    def of_times(cls, seconds: Sequence[float]) -> "_Unit":
        longest = max(seconds, default=0.0)
        units = (("days", 86400.0, 4), ("hours", 3600.0, 5), ("minutes", 60.0, 5), ("seconds", 1.0, 0))
        return next(cls(name=name, size=size) for name, size, least in units if longest >= least * size)

    @classmethod
    def of_bytes(cls, counts: Sequence[float]) -> "_Unit":
        most = max(counts, default=0.0)
        units = (("GB", 1e9, 1), ("MB", 1e6, 1), ("kB", 1e3, 0))
        return next(cls(name=name, size=size) for name, size, least in units if most >= least * size)

    def of(self, values: Sequence[float]) -> list[float]:
        return [value / self.size for value in values]


def _table(results: Sequence[SimulationResult]) -> Iterator[str]:
    """A row for each run; a column that says nothing of any of them is left out."""
    group = _group(results)
    columns: dict[str, list[str]] = {
        "run": [result.name for result in results],
        "accuracy": [shown_share(result.accuracy) for result in results],
        f"worst {group}": [_worst_cell(result, group) for result in results],
        "loss": [shown_loss(result.loss) for result in results],
        "target at": [shown_time(result.reached.virtual_s) if result.reached else "-" for result in results],
        "versions": [str(result.versions) for result in results],
        "updates": [f"{result.accepted:,}" for result in results],
        "virtual time": [shown_time(result.virtual_s) for result in results],
        "up": [shown_bytes(result.bytes_up) for result in results],
        "down": [shown_bytes(result.bytes_down) for result in results],
        "lost": [str(result.losses) for result in results],
    }
    told = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
    yield '<div class="wide"><table><tr>' + "".join(f"<th>{escape(name)}</th>" for name in told) + "</tr>"
    for cells in zip(*told.values(), strict=True):
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _worst_cell(result: SimulationResult, group: str) -> str:
    said = shown_share(result.worst_group)
    return f"{said} ({result.groups_of})" if result.by_group and group == "group" else said
