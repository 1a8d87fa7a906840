"""The operator's commands on a coordinator and its state."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from broker_coordinator.command_words import opinion_of, recovery_lines, status_lines
from broker_coordinator.configuration import FleetConfiguration, HttpTable, read_fleet
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.errors import ConfigError, LichenError, StorageError

__all__ = ["audit", "backup", "coordinator", "devices", "export", "status", "versions"]

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
DEFAULT_FILE = Path("fleet.toml")
Command = TypeVar("Command", bound=Callable[..., Any])

_state_folder = click.argument(
    "state_dir", required=False, type=click.Path(file_okay=False, path_type=Path), metavar="[STATE_DIR]"
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_fleet_file = click.argument(
    "fleet_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FLEET.toml"
)


@click.group(context_settings=HELP_OPTIONS)
def coordinator() -> None:
    """The program beside the broker."""


@coordinator.command("run", context_settings=HELP_OPTIONS)
@_fleet_file
@click.option("--broker", help="auto, auto:PORT, mosquitto, amqtt, or mqtt(s)://, ws(s)://host.")
@click.option("--insecure", is_flag=True, help="Run without TLS: for trials, on a network you trust.")
@click.option("--http", metavar="HOST:PORT", help="Where metrics and health are served.")
@click.option("--stop-after-versions", type=click.IntRange(min=1), help="End when version N is out.")
def run_command(
    *,
    fleet_file: Path,
    broker: str | None,
    insecure: bool,
    http: str | None,
    stop_after_versions: int | None,
) -> None:
    """Coordinate the fleet of FLEET.toml until stopped."""
    from broker_coordinator.service import run_coordinator

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    configuration = read_fleet(fleet_file)
    changes: dict[str, Any] = {}
    if broker is not None:
        changes["broker"] = broker
    if http is not None:
        changes["http"] = _http(http)
    if stop_after_versions is not None:
        changes["stop_after_versions"] = stop_after_versions
    run_coordinator(dataclasses.replace(configuration, **changes), insecure=insecure)


@coordinator.command("recover", context_settings=HELP_OPTIONS)
@_fleet_file
@click.option("--force", is_flag=True, help="Even if no device has shown that it is needed.")
@_as_json
def recover_command(*, fleet_file: Path, force: bool, as_json: bool) -> None:
    """Open a new epoch after a restored backup: what came after the backup is given up."""
    from broker_coordinator.books.recovery import recover
    from broker_coordinator.office import locked

    state = read_fleet(fleet_file).state
    with locked(state), _opened(state, write=True) as store:
        done = recover(state, store, force=force)
    if as_json:
        _print(dataclasses.asdict(done))
        return
    click.echo(f"epoch {done.epoch} is open; start the coordinator again")
    for line in recovery_lines(done):
        click.echo(f"  {line}")


@click.command(context_settings=HELP_OPTIONS)
@_state_folder
@_as_json
def status(*, state_dir: Path | None, as_json: bool) -> None:
    """How the coordinator stands."""
    from broker_coordinator.service import read_status

    body = read_status(_state(state_dir))
    if as_json:
        _print(body)
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, shown in status_lines(body):
        table.add_row(f"[bold]{name}[/bold]", escape(shown))
    Console().print(table)


@click.command(context_settings=HELP_OPTIONS)
@_state_folder
@_as_json
def devices(*, state_dir: Path | None, as_json: bool) -> None:
    """The devices, and why they are not training."""
    with _opened(_state(state_dir)) as store:
        records = store.devices()
        doubles = {double.device: double for double in store.doubles()}
    if as_json:
        plain = {name: _plain(double) for name, double in doubles.items()}
        _print([{**_plain(record), "doubled": plain.get(record.device)} for record in records])
        return
    table = Table(
        "device",
        "on line",
        "samples",
        "trained by",
        "accepted",
        "refused",
        "bytes up",
        "base",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    idle: dict[str, list[str]] = {}
    for record in records:
        table.add_row(
            record.device,
            "yes" if record.online else "no",
            str(record.samples),
            record.runtime,
            str(record.accepted),
            str(record.refused),
            f"{record.bytes_up:,}",
            "" if record.last_base is None else str(record.last_base),
        )
        if record.idle_reason:
            idle.setdefault(record.idle_reason, []).append(record.device)
    Console().print(table)
    for reason, names in idle.items():
        click.echo(f"idle: {', '.join(names)}: {reason}")
    for double in doubles.values():
        click.echo(
            f"{double.device} is two live devices: {double.how}. One took the other's place {double.count:,}"
            f" times, last {_moment(double.seen_at)}. Each update still counts once, but they share one place"
            " in the fleet: enroll each under a name of its own, with an empty state folder."
        )


@click.command(context_settings=HELP_OPTIONS)
@_state_folder
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The newest so many."
)
@_as_json
def versions(*, state_dir: Path | None, limit: int, as_json: bool) -> None:
    """The versions, newest last, and how good each is: measured here, and by devices; on how many samples."""
    from broker_coordinator.evaluation import Evaluation

    with _opened(_state(state_dir)) as store:
        rows = [
            (
                record,
                Evaluation.from_metrics(record.metrics),
                Evaluation.of_devices(store.device_evaluation(record.number)),
            )
            for record in store.versions(limit)
        ]
    if as_json:
        _print(
            [
                {**_plain(record), "coordinator": _measured(ours), "devices": _measured(theirs)}
                for record, ours, theirs in rows
            ]
        )
        return
    table = Table(
        "version",
        "updates",
        "closed by",
        "term",
        "accuracy here",
        "accuracy on devices",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for record, ours, theirs in rows:
        table.add_row(
            f"{record.epoch}.{record.number}" + ("" if record.published else ", unpublished"),
            str(record.updates),
            record.closed_by,
            str(record.term),
            opinion_of(ours),
            opinion_of(theirs),
        )
    Console().print(table)
    caveat = _caveat(_state(state_dir))
    if caveat and any(ours is not None for _, ours, _ in rows):
        click.echo(f"The coordinator measures {caveat}.")


@click.command(context_settings=HELP_OPTIONS)
@_state_folder
@click.option("--version", "number", type=click.IntRange(min=0), help="The newest, where not given.")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The npz file to write."
)
@click.option("--published", is_flag=True, help="The weights that devices have, not the master's.")
@_as_json
def export(*, state_dir: Path | None, number: int | None, out: Path, published: bool, as_json: bool) -> None:
    """Write a version's weights, one array for each parameter."""
    from broker_coordinator.books.export import export_version

    state = _state(state_dir)
    with _opened(state) as store:
        done = export_version(store, state, out.absolute(), number=number, published=published)
    if as_json:
        _print(
            {
                "path": str(done.path),
                "version": done.version.number,
                "epoch": done.version.epoch,
                "published": done.published,
                "parameters": done.parameters,
            }
        )
        return
    kind = "published" if done.published else "master"
    click.echo(
        f"{done.path}: {kind} weights of version {done.version.number}, {done.parameters:,} parameters"
    )


@click.command(context_settings=HELP_OPTIONS)
@_state_folder
@click.option(
    "--agents",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="An agent's state folder, or a folder of such; may stand more than once.",
)
@_as_json
def audit(*, state_dir: Path | None, agents: Sequence[Path], as_json: bool) -> None:
    """Check that every update was counted once, and every version can be made again bit for bit."""
    from broker_coordinator.books.audit import audit as audit_state

    report = audit_state(_state(state_dir), [folder for given in agents for folder in _agent_states(given)])
    body = report.to_json()
    if as_json:
        _print(body)
    else:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in body.items():
            if name != "faults":
                table.add_row(f"[bold]{name.replace('_', ' ')}[/bold]", str(value))
        Console().print(table)
        for fault in report.faults:
            click.echo(f"  {fault}")
    if not report.balanced:
        raise click.exceptions.Exit(1)


@click.command(context_settings=HELP_OPTIONS)
@_state_folder
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="A new or empty folder."
)
@_as_json
def backup(*, state_dir: Path | None, out: Path, as_json: bool) -> None:
    """Copy the state, consistently, while the coordinator runs. The copy holds its private key."""
    from broker_coordinator.books.backup import back_up

    done = back_up(_state(state_dir), out.absolute())
    if as_json:
        _print({"path": str(done.path), "version": done.version, "files": done.files, "bytes": done.bytes})
        return
    click.echo(f"{done.path}: {done.files} files, {done.bytes:,} bytes, newest version {done.version}")


def _http(address: str) -> HttpTable:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise click.BadParameter(f"{address!r} is not HOST:PORT, as 127.0.0.1:9641", param_hint="--http")
    return HttpTable(host=host, port=int(port))


def _state(given: Path | None) -> Path:
    """The state folder: as given, or that of ./fleet.toml."""
    if given is not None:
        return given
    if not DEFAULT_FILE.exists():
        raise ConfigError(
            "which coordinator?", hint=f"name its state folder, or go to the folder of its {DEFAULT_FILE}"
        )
    configuration: FleetConfiguration = read_fleet(DEFAULT_FILE)
    return configuration.state


@contextmanager
def _opened(state: Path, *, write: bool = False) -> Iterator[SqliteStore]:
    store = SqliteStore.open(state, read_only=not write)
    try:
        yield store
    finally:
        store.close()


def _agent_states(folder: Path) -> list[Path]:
    """The folder itself if it is an agent's state, else those below it."""
    if (folder / "agent.db").exists():
        return [folder]
    found = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/agent.db"))
    if not found:
        raise LichenError(
            f"{folder} is no agent's state folder, and holds none", hint="it would hold agent.db"
        )
    return found


def _caveat(state: Path) -> str:
    """What is to be said with the coordinator's figures, as its last status has it."""
    from broker_coordinator.service import read_status

    try:
        return str(read_status(state).get("accuracy_caveat", ""))
    except StorageError:
        return ""


def _measured(evaluation: Any) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {
        "source": evaluation.source,
        "devices": evaluation.devices,
        "examples": evaluation.examples,
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
    }


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _plain(record: Any) -> dict[str, Any]:
    """A record as JSON takes it: byte strings in hex."""
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in dataclasses.asdict(record).items()
    }


def _print(body: Any) -> None:
    click.echo(json.dumps(body, indent=2))
