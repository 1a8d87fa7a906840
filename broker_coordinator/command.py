"""The operator's commands on a coordinator and its state."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from broker_coordinator.configuration import FleetConfiguration, HttpTable, read_fleet
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.errors import ConfigError, LichenError, StorageError

if TYPE_CHECKING:
    from broker_coordinator.books.recovery import Recovery

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
    for line in _recovery_lines(done):
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
    for name, shown in _status_lines(body):
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
            _opinion(ours),
            _opinion(theirs),
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


def _recovery_lines(done: "Recovery") -> Iterator[str]:
    kept = "no version" if done.kept is None else f"version {done.kept[0]}.{done.kept[1]} and all before it"
    yield f"kept: {kept}, {done.accepted:,} accepted updates ({done.waiting:,} not folded yet)"
    if done.seen is not None:
        reached = f"{done.seen[0]}.{done.seen[1]}"
        yield f"given up: {done.given_up:,} versions that devices have had since, up to {reached}"
    yield "updates that devices still hold come again by themselves; made from a version given up: refused"
    yield "updates that were counted since, and dropped by their devices, are not known here:"
    yield "  lichen audit --agents DIR counts them as given up, for the devices whose folders you name"


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


def _status_lines(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    running = f"process {body['pid']}, {body['state']}" if body["running"] else "not running"
    yield "fleet", f"{body['fleet']} ({running})"
    yield "version", f"{body['epoch']}.{body['version']}, published {body['published']}, term {body['term']}"
    yield from _quality_lines(body)
    yield "devices on line", str(body["devices_online"])
    yield "updates", f"{body['updates_accepted']:,} accepted, {body['waiting']} waiting"
    for name, counts in body.get("runtimes", {}).items():
        yield f"trained by {name or 'others'}", _counted(counts)
    for what in ("refused", "rejected"):
        if body[what]:
            yield what, ", ".join(f"{reason} {count:,}" for reason, count in sorted(body[what].items()))
    if body["quarantined"]:
        yield "quarantined", str(body["quarantined"])
    if body.get("aggregator_fault"):
        yield "aggregator", body["aggregator_fault"]
    yield "broker", body["broker"]
    yield from _identity_lines(body)
    if body.get("tls_date_error"):
        yield "certificate", f"taken in spite of its dates: {body['tls_date_error']}"
    if body["http"] and body["running"]:
        yield "http", body["http"]


def _identity_lines(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if body.get("insecure"):
        yield "insecure", "no TLS: whoever reaches the broker can read, and speak for any device"
    if body.get("devices_enrolled") is not None:
        yield "enrolled", f"{body['devices_enrolled']:,} devices"
    if body.get("registry_fault"):
        yield "registry", f"{body['registry_fault']}; the one read last holds on"
    for name, days in body.get("certificates_expiring", {}).items():
        ends = f"ends in {days} days" if days >= 0 else "has ended"
        yield "certificate", f"{name}'s {ends}: lichen fleet enroll {name} --renew"
    if body.get("doubled"):
        shown = ", ".join(f"{name} ({count:,} times)" for name, count in body["doubled"].items())
        yield "two live devices", f"share one identity: {shown}; see lichen devices"


def _quality_lines(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How good the newest version is, who says so, and with what."""
    by = _devices(body["accuracy_devices"]) if body["accuracy_devices"] else "the coordinator"
    caveat = f", {body['accuracy_caveat']}" if body.get("accuracy_caveat") else ""
    source = (
        f"at version {body['accuracy_version']}, by {by} on {body['accuracy_examples']:,} examples{caveat}"
    )
    if body["accuracy"] is not None:
        yield "accuracy", f"{body['accuracy']:.4f} {source}"
    else:
        for name, mean in body.get("metrics", {}).items():
            yield name, f"{mean:.5g} {source}"
    if reported := body.get("reported"):
        said = ", ".join(f"{name} {mean:.4g}" for name, mean in reported["means"].items())
        yield (
            "devices say",
            f"{said} at version {reported['version']}, {_devices(reported['devices'])} on"
            f" {reported['examples']:,} examples",
        )


def _caveat(state: Path) -> str:
    """What is to be said with the coordinator's figures, as its last status has it."""
    from broker_coordinator.service import read_status

    try:
        return str(read_status(state).get("accuracy_caveat", ""))
    except StorageError:
        return ""


def _counted(counts: dict[str, int]) -> str:
    return f"{counts['accepted']:,} accepted, {counts['folded']:,} folded"


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


def _opinion(evaluation: Any) -> str:
    if evaluation is None or evaluation.accuracy is None:
        return ""
    by = f", {_devices(evaluation.devices)}" if evaluation.devices else ""
    return f"{evaluation.accuracy:.4f} on {evaluation.examples:,}{by}"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"


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
