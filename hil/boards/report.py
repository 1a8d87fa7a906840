"""The table of boards and scenarios, as text and as a page that needs nothing else."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from hil.boards.scenarios import PAIR_SCENARIOS, SCENARIOS
from hil.page_style import PAGE_STYLE

__all__ = ["Figures", "Outcome", "figures", "outcomes", "table", "write_json", "write_page"]

_MARKS = {"passed": "ok", "failed": "FAIL", "skipped": "-"}
_COLOURS = {"passed": "#2f7d4f", "failed": "#b3261e", "skipped": "#69756e"}
_LONGEST_REASON = 2000
Figures = Mapping[str, Mapping[str, float]]
"""By board and name: seconds (``_s``) and MiB (``_mib``)."""
_NAMES = {
    "image_s": "making the stand-in image, s",
    "ready_to_boot_s": "image, payload and cards, s",
    "copy_s": "copying the image, s",
    "flash_s": "flashing it, s",
    "first_connection_s": "first boot to a connected agent with samples, s",
    "first_update_s": "first boot to its first accepted update, s",
    "agent_rss_mib": "agent, most RSS, MiB",
    "worker_peak_rss_mib": "worker that trains, most RSS, MiB",
    "training_rss_mib": "both together, MiB",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A scenario on a board: ``passed``, ``failed`` or ``skipped``, in how many seconds, and why."""

    board: str
    scenario: str
    result: str
    seconds: float = 0.0
    reason: str = ""


def outcomes(reports: Iterable[Any]) -> list[Outcome]:
    """What a session's test reports say; a scenario whose set-up or tear-down failed has failed."""
    found: dict[tuple[str, str], Outcome] = {}
    for report in reports:
        named = dict(report.user_properties).get("hil")
        if named is None or (report.when != "call" and report.passed):
            continue
        board, scenario = named
        before = found.get((board, scenario))
        if before is not None and before.result == "failed":
            continue
        found[board, scenario] = Outcome(
            board=board,
            scenario=scenario,
            result=report.outcome,
            seconds=report.duration,
            reason=_reason(report),
        )
    return list(found.values())


def figures(reports: Iterable[Any]) -> Figures:
    """What boards measured, as of the last report of each."""
    found: dict[str, dict[str, float]] = {}
    for report in reports:
        named = dict(report.user_properties).get("hil_figures")
        if named is not None and named[1]:
            found.setdefault(named[0], {}).update(named[1])
    return found


def table(found: Sequence[Outcome], measured: Figures | None = None) -> str:
    """A row for each scenario, a column for each board; below, why something failed or was left out, and what
    was measured."""
    boards, scenarios = _axes(found)
    cells = {(outcome.board, outcome.scenario): _cell(outcome) for outcome in found}
    width = max(len(name) for name in ("scenario", *scenarios)) + 2
    columns = {
        board: max(len(board), *(len(cells.get((board, name), "")) for name in scenarios)) + 2
        for board in boards
    }
    lines = ["scenario".ljust(width) + "".join(board.rjust(columns[board]) for board in boards)]
    lines += [
        name.ljust(width) + "".join(cells.get((board, name), "").rjust(columns[board]) for board in boards)
        for name in scenarios
    ]
    lines += [
        f"{outcome.board}, {outcome.scenario}: {outcome.reason.splitlines()[0]}"
        for outcome in found
        if outcome.reason
    ]
    lines += [
        f"{board}: {name}: {value:g}"
        for board, values in (measured or {}).items()
        for name, value in _named(values)
    ]
    return "\n".join(lines)


def write_json(path: Path, found: Sequence[Outcome], measured: Figures) -> Path:
    """Outcomes and figures, for programs; the path."""
    body = {"outcomes": [asdict(outcome) for outcome in found], "figures": measured}
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return path


def write_page(path: Path, found: Sequence[Outcome], measured: Figures | None = None) -> None:
    """Write the table as a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_page(found, measured or {})) + "\n", encoding="utf-8")


def _page(found: Sequence[Outcome], measured: Figures) -> Iterator[str]:
    boards, scenarios = _axes(found)
    there = {(outcome.board, outcome.scenario): outcome for outcome in found}
    counts = {result: sum(1 for outcome in found if outcome.result == result) for result in _MARKS}
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>Lichen boards</title><style>{PAGE_STYLE}pre{{white-space:pre-wrap}}</style>"
    yield "</head><body><main>"
    yield "<h1>Hardware in the loop</h1>"
    yield '<p class="sub">Each scenario ends with an audit: what the device made is folded exactly once.</p>'
    yield '<div class="tiles">'
    for result, count in counts.items():
        yield f'<div class="tile"><b style="color:{_COLOURS[result]}">{count}</b><span>{result}</span></div>'
    yield "</div><table>"
    yield f"<tr><th>scenario</th>{''.join(f'<th>{escape(board)}</th>' for board in boards)}</tr>"
    for name in scenarios:
        cells = [there.get((board, name)) for board in boards]
        yield f"<tr><td>{escape(name.replace('_', ' '))}</td>{''.join(map(_data, cells))}</tr>"
    yield "</table>"
    for board, values in measured.items():
        yield f"<h3>{escape(board)}, measured</h3><table>"
        for name, value in _named(values):
            yield f"<tr><td>{escape(name)}</td><td>{value:g}</td></tr>"
        yield "</table>"
    for outcome in found:
        if outcome.reason:
            name = outcome.scenario.replace("_", " ")
            yield f"<h3>{escape(outcome.board)}, {escape(name)}: {outcome.result}</h3>"
            yield f"<pre>{escape(outcome.reason)}</pre>"
    yield "</main></body></html>"


def _named(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """In the order of what happens; others behind them, by their own names."""
    known = [(title, values[name]) for name, title in _NAMES.items() if name in values]
    return known + [(name, value) for name, value in values.items() if name not in _NAMES]


def _data(outcome: Outcome | None) -> str:
    if outcome is None:
        return "<td></td>"
    return f'<td style="color:{_COLOURS[outcome.result]}">{escape(_cell(outcome))}</td>'


def _cell(outcome: Outcome) -> str:
    mark = _MARKS[outcome.result]
    return mark if outcome.result == "skipped" else f"{mark} {outcome.seconds:.0f} s"


def _axes(found: Sequence[Outcome]) -> tuple[list[str], list[str]]:
    """Boards and scenarios, each once."""
    return (
        list(dict.fromkeys(outcome.board for outcome in found)),
        list(dict.fromkeys(sorted((outcome.scenario for outcome in found), key=_place))),
    )


def _place(scenario: str) -> int:
    """Ours in their own order, a user's behind them as they came."""
    known = [*SCENARIOS, *PAIR_SCENARIOS]
    return known.index(scenario) if scenario in known else len(known)


def _reason(report: Any) -> str:
    if report.skipped:
        where = report.longrepr
        return str(where[2] if isinstance(where, tuple) else where).removeprefix("Skipped: ")
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        return str(crash.message if crash is not None else report.longreprtext)[:_LONGEST_REASON]
    return ""
