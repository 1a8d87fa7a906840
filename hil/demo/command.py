"""``lichen demo``."""

import fcntl
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TextIO

import click
from rich.console import Console

from fl_protocol.errors import LichenError
from hil.demo.course import Moment, follow
from hil.demo.figures import Figures, collect
from hil.demo.report import write_report
from hil.demo.screen import Screen
from hil.local_fleet import FleetOptions, LocalFleet
from models.runtime.artifact import TrainingArtifact

__all__ = ["demo"]

_OURS = {
    "artifact",
    "broker",
    "coordinator",
    "demo.lock",
    "devices",
    "fleet.toml",
    "held_out.npz",
    "logs",
    "report.html",
    "report.json",
}
_LOCKS: list[TextIO] = []
"""Held until the process ends."""


@click.command()
@click.option("--devices", default=8, show_default=True, type=click.IntRange(1, 64), help="Agents to start.")
@click.option("--versions", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Stop after.")
@click.option(
    "--broker", default="auto", show_default=True, help="auto, mosquitto, amqtt, or a broker's URL."
)
@click.option("--runtime", default="onnx", show_default=True, type=click.Choice(["onnx", "numpy"]))
@click.option("--codec", default="eden(bits=1)", show_default=True, help="Codec of the updates.")
@click.option("--partition", default="dirichlet:1.0", show_default=True, help="iid or dirichlet:A.")
@click.option("--hidden", default=32, show_default=True, type=click.IntRange(1, 8192), help="Hidden units.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Model and partition.")
@click.option(
    "--out", default="demo-out", show_default=True, type=click.Path(path_type=Path), help="Folder of the run."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def demo(*, out: Path, as_json: bool, **options: object) -> None:
    """Train one model on real digits with a fleet of real processes on this machine."""
    console = Console(stderr=as_json, quiet=as_json)
    folder = _fresh_folder(out)
    started = time.monotonic()
    fleet = LocalFleet(folder, FleetOptions(**options))  # type: ignore[arg-type]  # click has checked them
    figures = _run(fleet, console, started)
    page = write_report(folder, figures)
    if as_json:
        click.echo(json.dumps(figures.summary))
    else:
        console.print(f"\nreport: {page}", soft_wrap=True, highlight=False)


def _run(fleet: LocalFleet, console: Console, started: float) -> Figures:
    """Prepare, start, follow and end a fleet; whatever happens, no process is left."""
    moments: list[Moment] = []
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with console.status("preparing model, data and broker"):
            fleet.prepare()
            layout = TrainingArtifact.open(fleet.folder / "artifact").layout
        screen = Screen(
            console,
            versions=fleet.options.versions,
            devices=fleet.options.devices,
            float32_bytes=4 * layout.size,
        )
        fleet.start()
        with screen.running(f"{fleet.options.devices} agents are starting, broker {fleet.broker_name}"):
            for moment in follow(fleet):
                moments.append(moment)
                screen.show(moment)
    except KeyboardInterrupt:
        console.print("interrupted: ending all processes")
        fleet.stop()
        sys.exit(130)
    finally:
        fleet.stop()
    figures = collect(fleet, moments, time.monotonic() - started)
    screen.finish(figures)
    return figures


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fresh_folder(out: Path) -> Path:
    """The folder of this run, empty: what an earlier demo left in it is removed, nothing else is.

    Raises:
        LichenError: it holds files that no demo wrote, or another demo runs in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / "demo.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise LichenError(f"another demo runs in {out}", hint="name another folder with --out") from None
    _LOCKS.append(lock)
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in _OURS)
    if foreign:
        raise LichenError(
            f"{out} holds files that no demo wrote: {', '.join(foreign[:5])}",
            hint="name an empty or new folder with --out",
        )
    for entry in out.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "demo.lock":
            entry.unlink()
    return out
