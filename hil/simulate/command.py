"""``lichen simulate``."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from broker_coordinator.evaluation import Evaluation
from fl_protocol.errors import ConfigError
from hil.simulate.fleet import VirtualFleet
from hil.simulate.page import shown_bytes, shown_loss, shown_share, shown_time, write_comparison, write_run
from hil.simulate.result import SimulationResult
from hil.simulate.scenario import read_scenario, run_scenario
from hil.simulate.simulation import Progress as Follow

__all__ = ["simulate"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@click.option("--devices", type=click.IntRange(1, 1_000_000), help="In place of the scenarios' numbers.")
@click.option("--seed", type=click.IntRange(0), help="In place of the scenarios' seeds.")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Any key: fleet.buffer.size=50 (repeatable)."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a page and figures for each run there, and the coordinator's state to look at or to audit.",
)
@click.option(
    "--broker",
    metavar="URL",
    default="",
    help="Over a real MQTT broker (mqtt:// or mqtts://), with a connection for each device.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, without the rest.")
def simulate(
    *,
    scenarios: tuple[str, ...],
    devices: int | None,
    seed: int | None,
    changes: tuple[str, ...],
    out: Path | None,
    broker: str,
    as_json: bool,
) -> None:
    """Run virtual fleets: the agent and the coordinator as they are deployed, on a clock that jumps.

    SCENARIO is a TOML file, or one that comes along: attackers, commuter, dirichlet, heavy-tail, iid, motion,
    shuttle. The same scenario and seed give the same result to the last bit.
    """
    console = Console(stderr=True, quiet=as_json)
    more = [f"{key}={value}" for key, value in (("devices", devices), ("seed", seed)) if value is not None]
    # Faults in the last file must not be found after an hour of the first.
    written = [read_scenario(words, [*changes, *more]) for words in scenarios]
    twice = [name for name, times in Counter(one.name for one in written).items() if times > 1]
    if out is not None and twice:
        raise ConfigError(
            f"{twice[0]}: two scenarios of this name would be one page in {out}",
            hint="rename a file",
        )
    results = []
    for one in written:
        with _bar(console, one.name, one.keys.versions) as follow:
            state = out / f"{one.name}-coordinator" if out else None
            results.append(run_scenario(one, state=state, progress=follow, broker=broker))
        if out is not None:
            page = write_run(out, results[-1], summary=one.keys.summary)
            console.print(f"wrote {page}")
    if out is not None and len(results) > 1:
        console.print(f"wrote {write_comparison(out, results)}")
    if as_json:
        click.echo(json.dumps([result.to_body() for result in results], indent=2))
    else:
        Console().print(_table(results))


@contextmanager
def _bar(console: Console, name: str, versions: int) -> Iterator[Follow]:
    """A bar that a run moves on by its versions."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("version {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(name, total=versions, said="")
        at = -1

        def follow(fleet: VirtualFleet) -> None:
            nonlocal at
            version = fleet.coordinator.version.number
            if version == at:
                return
            at = version
            measured = fleet.coordinator.evaluated
            accuracy = _measured(measured[1] if measured else None)
            now = shown_time(fleet.clock.monotonic())
            said = f"{accuracy}, {now}, {shown_bytes(fleet.meter.up)} up"
            progress.update(bar, completed=version, said=said)

        yield follow


def _measured(evaluation: Evaluation | None) -> str:
    if evaluation is not None and evaluation.accuracy is None and evaluation.loss is not None:
        return f"loss {shown_loss(evaluation.loss)}"
    return f"accuracy {shown_share(evaluation.accuracy if evaluation else None)}"


def _table(results: list[SimulationResult]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns will do
    table.add_column("scenario", no_wrap=True)
    quality = "loss" if all(result.accuracy is None for result in results) else "accuracy"
    for name in ("devices", quality, "versions", "updates", "time", "up", "down", "state"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.name,
            f"{result.devices:,}",
            _quality(result),
            str(result.versions),
            f"{result.accepted:,}",
            shown_time(result.virtual_s),
            shown_bytes(result.bytes_up),
            shown_bytes(result.bytes_down),
            result.state_hash[:8],
        )
    return table


def _quality(result: SimulationResult) -> str:
    """The accuracy, else the loss."""
    if result.accuracy is None and result.loss is not None:
        return f"loss {shown_loss(result.loss)}"  # beside runs that have an accuracy, it must say what it is
    return shown_share(result.accuracy)
