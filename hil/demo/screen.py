"""What a person sees while the demo runs, and the table at its end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hil.demo.course import Moment
from hil.demo.figures import Figures

__all__ = ["Screen", "of_devices", "shown"]

SPARKS = "▁▂▃▄▅▆▇█"


class Screen:
    """Live progress on a terminal; a line per version where the output is no terminal."""

    def __init__(
        self, console: Console, *, versions: int, devices: int, float32_bytes: int, metric: str = "accuracy"
    ) -> None:
        self._console = console
        self._metric = metric
        self._versions = versions
        self._devices = devices
        self._float32_bytes = float32_bytes
        self._scores: list[float] = []
        self._version = 0
        self._live: Live | None = None

    @contextmanager
    def running(self, title: str) -> Iterator[None]:
        """Show progress while the block runs."""
        if not self._console.is_terminal:
            self._console.print(title, highlight=False, soft_wrap=True)
            yield
            return
        with Live(Text(title), console=self._console, refresh_per_second=8, transient=True) as live:
            self._live = live
            yield
        self._live = None

    def show(self, moment: Moment) -> None:
        """Show a moment."""
        score = moment.metrics.get(self._metric)
        if moment.version > self._version and score is not None:
            self._scores += [score] * (moment.version - self._version)
            self._version = moment.version
            if self._live is None:
                self._console.print(self._line(moment), highlight=False, soft_wrap=True)
        if self._live is not None:
            self._live.update(self._panel(moment))

    def finish(self, figures: Figures) -> None:
        """The table at the end."""
        table = Table(
            title="What happened", title_justify="left", show_header=False, box=None, padding=(0, 2)
        )
        for name, value in _rows(figures.summary):
            table.add_row(Text(name, style="dim"), Text(value))
        self._console.print(table)

    def _line(self, moment: Moment) -> str:
        return (
            f"version {moment.version:>3}/{self._versions}  {self._metric} {self._score(moment, '-')}"
            f"{self._of_devices(moment, ', on devices ')}  "
            f"devices {moment.devices_online}/{self._devices}  updates {moment.updates}  "
            f"sent {_size(moment.bytes_up)} ({self._smaller(moment)})  {moment.seconds:.0f} s"
        )

    def _panel(self, moment: Moment) -> Panel:
        grid = Table.grid(padding=(0, 2))
        grid.add_row("version", f"{moment.version} of {self._versions}")
        score = self._score(moment, "waiting for the first one")
        grid.add_row(self._metric, Text.assemble((score, "bold green"), "  ", _sparkline(self._scores)))
        if said := self._of_devices(moment):
            grid.add_row("on devices", said)
        grid.add_row("devices on line", f"{moment.devices_online} of {self._devices}")
        grid.add_row("updates", f"{moment.updates} accepted, {moment.refused} refused")
        grid.add_row("sent by devices", f"{_size(moment.bytes_up)}, {self._smaller(moment)}")
        grid.add_row("time", f"{moment.seconds:.0f} s")
        bar = ProgressBar(total=self._versions, completed=moment.version, width=60)
        return Panel(Group(grid, Text(""), bar), title="lichen demo", title_align="left", width=78)

    def _score(self, moment: Moment, otherwise: str) -> str:
        score = moment.metrics.get(self._metric)
        return shown(score) if score is not None else otherwise

    def _of_devices(self, moment: Moment, before: str = "") -> str:
        score = moment.reported.get(self._metric)
        return f"{before}{shown(score)}" if score is not None else ""

    def _smaller(self, moment: Moment) -> str:
        if not moment.bytes_up or not moment.updates:
            return "nothing yet"
        return f"{self._float32_bytes * moment.updates / moment.bytes_up:.1f} times smaller than float32"


def _rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    metrics, first = summary["metrics"], summary["metric"]
    for name in sorted(metrics, key=lambda name: (name != first, name)):
        yield name, f"{shown(metrics[name], 4)} on {summary['held_out_examples']} held-out samples"
    if summary["caveat"]:
        yield "caveat", f"measured {summary['caveat']}"
    if (said := summary["reported"]) and summary["caveat"]:
        for name in sorted(said["metrics"], key=lambda name: (name != first, name)):
            yield f"{name} on devices", f"{shown(said['metrics'][name], 4)} {of_devices(said)}"
    yield "versions", f"{summary['versions']} in {summary['seconds']:.1f} s"
    yield "devices", f"{summary['devices']} processes, {summary['runtime']} runtime, {summary['partition']}"
    yield "updates", f"{summary['updates_accepted']} accepted, {summary['updates_refused']} refused"
    if summary["runtimes"].keys() - {summary["runtime"]}:
        for name, counts in summary["runtimes"].items():
            yield (
                name,
                f"{counts['devices']} devices, {counts['accepted']} accepted, {counts['folded']} folded",
            )
    for name, reason in summary["runtimes_absent"].items():
        yield name, f"took no part: {reason}"
    if summary["bytes_up_total"]:
        total, each = _size(summary["bytes_up_total"]), summary["bytes_up_per_update"]
        yield "sent by devices", f"{total} in all, {each:.0f} bytes an update with every MQTT byte counted"
        yield (
            "against float32",
            f"{summary['ratio_all']:.1f} times smaller with all overhead, "
            f"{summary['ratio_payload']:.1f} times the payload alone",
        )
    yield "broker", str(summary["broker"])
    yield (
        "books",
        f"{summary['lost']} lost, {summary['duplicated']} counted twice; "
        f"{summary['versions_replayed']} versions replayed "
        + ("bit for bit" if summary["replay_ok"] else "WITH DIFFERENCES"),
    )


def of_devices(said: Mapping[str, Any]) -> str:
    """Where a figure comes from that devices report: ``reported`` of a demo's figures."""
    count = said["devices"]
    return (
        f"on {said['examples']} held-out samples of {count} device{'s' if count > 1 else ''}, "
        f"version {said['version']}"
    )


def shown(value: float, places: int = 3) -> str:
    """A share with fixed places; what is no share with as many digits that count."""
    return f"{value:.{places}f}" if 0.01 <= abs(value) < 10 else f"{value:.{places}g}"


def _sparkline(values: list[float], width: int = 40) -> str:
    shown = values[-width:]
    if not shown:
        return ""
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in shown)


def _size(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1_000_000:.2f} MB"
    return f"{count / 1000:.1f} KB"
