"""``lichen demo``."""

import fcntl
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TextIO

import click
from rich.console import Console

from broker_coordinator.embedded_broker import BROKER_KINDS
from fl_io.broker_address import BrokerAddress
from fl_protocol.codec import codec_for
from fl_protocol.errors import LichenError, StorageError
from hil.demo.course import Moment, follow
from hil.demo.figures import Figures, collect
from hil.demo.report import write_report
from hil.demo.screen import Screen
from hil.lineup import CHOICES
from hil.local_fleet import FleetOptions, LocalFleet
from hil.partition import concentration
from hil.workload import DATA, headline
from models.runtime.artifact import TrainingArtifact

__all__ = ["demo"]

_MARK = "demo.lock"
"""Locked while a demo runs, and the sign that a folder is a demo's: an operator's own looks much like it."""
_OURS = {
    _MARK,
    "artifact",
    "broker",
    "coordinator",
    "devices",
    "fleet.toml",
    "held_out.npz",
    "logs",
    "report.html",
    "report.json",
}
_LOCKS: list[TextIO] = []
"""Held until the process ends."""


def _broker(text: str) -> object:
    return text in BROKER_KINDS or BrokerAddress.parse(text)


def _checked(
    check: Callable[[str], object],
) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """A bad word is known before anything is started."""

    def callback(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        try:
            if value is not None:
                check(value)
        except LichenError as error:
            raise click.BadParameter(str(error)) from None
        return value

    return callback


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--devices", default=8, show_default=True, type=click.IntRange(1, 64), help="Agents to start.")
@click.option("--versions", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Stop after.")
@click.option(
    "--broker",
    default="auto",
    show_default=True,
    callback=_checked(_broker),
    help="auto, mosquitto, amqtt, or a broker's URL.",
)
@click.option(
    "--runtime",
    default="onnx",
    show_default=True,
    type=click.Choice(CHOICES),
    help="What devices train with; mixed: all of them in one fleet.",
)
@click.option(
    "--tflite-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Interpreter for tflite, whose packages need numpy 1.x.  [default: that of make demo-mixed]",
)
@click.option(
    "--data",
    default=DATA[0],
    show_default=True,
    type=click.Choice(DATA),
    help="What is learned; all but the digits are got by `lichen models fetch` first.",
)
@click.option(
    "--artifact",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A training artifact of your own.",
)
@click.option(
    "--samples",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its samples: an npz of x and y. A fifth is held out.",
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate of the devices.")
@click.option("--epochs", type=click.IntRange(1, 10_000), help="Passes over a device's samples per update.")
@click.option("--batch-size", type=click.IntRange(1, 1 << 20), help="Samples per step.")
@click.option(
    "--codec",
    default="eden(bits=1)",
    show_default=True,
    callback=_checked(codec_for),
    help="Codec of the updates.",
)
@click.option(
    "--partition",
    callback=_checked(concentration),
    help="iid, dirichlet:A, or by-user.  [default: by-user, else dirichlet:1.0 by class, else iid]",
)
@click.option("--hidden", default=32, show_default=True, type=click.IntRange(1, 8192), help="Hidden units.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Model and partition.")
@click.option(
    "--out",
    default="demo-out",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def demo(*, out: Path, as_json: bool, **options: object) -> None:
    """Train one model with a fleet of real processes here: on real data, or yours on your samples."""
    console = Console(stderr=as_json, quiet=as_json)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        folder = _fresh_folder(out)
        started = time.monotonic()
        fleet = LocalFleet(folder, FleetOptions(**options))  # type: ignore[arg-type]  # click has checked them
        figures = _run(fleet, console, started)
        page = write_report(folder, figures)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        raise StorageError(
            f"the demo cannot go on: {error}", hint="name another folder with --out"
        ) from error
    if as_json:
        click.echo(json.dumps(figures.summary))
    else:
        console.print(f"\nreport: {page}", soft_wrap=True, highlight=False)


def _run(fleet: LocalFleet, console: Console, started: float) -> Figures:
    """Prepare, start, follow and end a fleet; whatever happens, no process is left."""
    moments: list[Moment] = []
    try:
        with console.status("preparing model, data and broker"):
            fleet.prepare()
            manifest = TrainingArtifact.open(fleet.folder / "artifact").manifest
        screen = Screen(
            console,
            versions=fleet.options.versions,
            devices=fleet.options.devices,
            float32_bytes=4 * manifest.layout.size,
            metric=headline(manifest.metrics),
        )
        fleet.start()
        with screen.running(f"{fleet.options.devices} agents are starting, broker {fleet.broker_name}"):
            for moment in follow(fleet):
                moments.append(moment)
                screen.show(moment)
    except KeyboardInterrupt:
        console.print("interrupted: ending all processes")
        raise
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
    names = {entry.name for entry in out.iterdir()}
    foreign = sorted(names - _OURS if _MARK in names else names)
    if foreign:
        raise LichenError(
            f"{out} holds files that no demo wrote: {', '.join(foreign[:5])}",
            hint="name an empty or new folder with --out",
        )
    lock = (out / _MARK).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise LichenError(f"another demo runs in {out}", hint="name another folder with --out") from None
    _LOCKS.append(lock)
    for entry in out.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _MARK:
            entry.unlink()
    return out
