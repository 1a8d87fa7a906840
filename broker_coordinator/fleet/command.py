"""``lichen fleet``: the identities of a fleet."""

import json
import socket
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from broker_coordinator.flash.command import flash
from broker_coordinator.fleet.bundle_command import bundle
from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from broker_coordinator.fleet.mosquitto import Notified
from broker_coordinator.fleet.renew_command import renew

__all__ = ["fleet"]

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
_fleet = click.option(
    "--fleet",
    "folder",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that `lichen fleet init` made.  [default: this one]",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_port = click.IntRange(1, 65535)


@click.group(context_settings=HELP_OPTIONS)
def fleet() -> None:
    """Who belongs to a fleet: certificates, rights on the broker, revocation, cards."""


fleet.add_command(bundle)
fleet.add_command(flash)
fleet.add_command(renew)


@fleet.command("init", context_settings=HELP_OPTIONS)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
@click.option("--name", help="Name of the fleet.  [default: that of DIR]")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Name or address of the broker; the first is what devices dial.  [default: this machine's name]",
)
@click.option("--port", default=8883, show_default=True, type=_port, help="Where devices connect.")
@click.option(
    "--coordinator-host", default="127.0.0.1", show_default=True, help="What the coordinator dials."
)
@click.option(
    "--coordinator-port", default=8884, show_default=True, type=_port, help="A listener of its own."
)
@click.option(
    "--artifact", type=click.Path(path_type=Path), help="What it is to train.  [default: DIR/artifact]"
)
@click.option(
    "--broker-path",
    type=click.Path(path_type=Path),
    help="Where the broker sees DIR/broker, if not there: in a container.",
)
def init_command(
    *,
    folder: Path,
    name: str | None,
    hosts: tuple[str, ...],
    port: int,
    coordinator_host: str,
    coordinator_port: int,
    artifact: Path | None,
    broker_path: Path | None,
) -> None:
    """Make a fleet: authority, keys, fleet.toml, and mosquitto's configuration with mutual TLS."""
    plan = FleetPlan(
        name=name or folder.absolute().name,
        hosts=hosts or (socket.gethostname(),),
        port=port,
        coordinator_host=coordinator_host,
        coordinator_port=coordinator_port,
        artifact=str(artifact.absolute()) if artifact else "artifact",
        broker_path=broker_path,
    )
    made = FleetFolder.create(folder, plan)
    click.echo(f"fleet {plan.name} in {made.path}; devices will dial {made.configuration.identity.broker}")
    click.echo(f"  mosquitto -c {made.broker.path / 'mosquitto.conf'}")
    click.echo(f"  lichen coordinator run {made.path / 'fleet.toml'}")
    click.echo(f"  lichen fleet enroll DEVICE --fleet {made.path}")
    click.echo(f"keep {made.path / 'private'} safe: whoever has ca.key can enroll devices")
    if (shut := made.broker.shut_off_by()) is not None:
        click.echo(
            f"warning: started by root, mosquitto becomes user mosquitto, who cannot pass {shut}:"
            " it would never see a revocation. Make the fleet elsewhere, or chmod o+x that folder",
            err=True,
        )


@fleet.command("enroll", context_settings=HELP_OPTIONS)
@click.argument("device")
@_fleet
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="[default: devices/DEVICE]")
@click.option(
    "--state", default="state", show_default=True, help="Where its agent keeps its state, on the device."
)
@click.option("--days", type=click.IntRange(1, 36500), help="How long it is valid.  [default: for ever]")
@click.option("--renew", is_flag=True, help="Replace the certificate of an enrolled device.")
@_as_json
def enroll_command(
    *, device: str, folder: Path, out: Path | None, state: str, days: int | None, renew: bool, as_json: bool
) -> None:
    """Issue a credential to DEVICE: a folder that goes onto it."""
    issued = FleetFolder(folder).enroll(device, out=out, state=state, days=days, renew=renew)
    if as_json:
        click.echo(json.dumps({**asdict(issued), "path": str(issued.path)}, indent=2))
        return
    click.echo(f"{device} is enrolled: copy {issued.path} onto it, then there:")
    click.echo("  lichen-agent run --config agent.toml")
    _tell(issued.notified)


@fleet.command("revoke", context_settings=HELP_OPTIONS)
@click.argument("device")
@_fleet
def revoke_command(*, device: str, folder: Path) -> None:
    """Shut DEVICE out: its certificate is void, its rights are gone, the coordinator refuses it."""
    notified = FleetFolder(folder).revoke(device)
    click.echo(f"{device} is revoked; a running coordinator takes nothing more from it")
    _tell(notified)
    if notified.failed:
        raise click.exceptions.Exit(1)


@fleet.command("list", context_settings=HELP_OPTIONS)
@_fleet
@_as_json
def list_command(*, folder: Path, as_json: bool) -> None:
    """The devices that were enrolled, and how many days their newest certificates have left."""
    devices = FleetFolder(folder).registry.devices.values()
    now = time.time()
    if as_json:
        listed = [{**device.body(), "days_left": device.days_left(now)} for device in devices]
        click.echo(json.dumps(listed, indent=2))
        return
    table = Table("device", "enrolled", "expires", "days left", "revoked", "serial", box=SIMPLE_HEAD)
    for device in devices:
        left = device.days_left(now)
        expires, days = (device.expires, f"{left:,}") if left is not None else ("never", "")
        table.add_row(device.device, device.enrolled, expires, days, device.revoked, device.serial[:16])
    Console().print(table)


def _tell(notified: Notified) -> None:
    click.echo(notified.sentence, err=notified.failed)
