"""``lichen fleet renew``: new certificates for devices and broker."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from broker_coordinator.fleet.folder import FleetFolder
from broker_coordinator.fleet.mosquitto import Notified
from broker_coordinator.fleet.renewal import RenewedBroker, RenewedDevice, renew_broker, renew_devices

__all__ = ["renew"]

_folder = click.Path(file_okay=False, path_type=Path)


@click.command("renew", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@click.option("--broker", is_flag=True, help="Renew the broker's certificate.")
@click.option("--host", "add", multiple=True, help="Another name or address of the broker.")
@click.option("--drop-host", "drop", multiple=True, help="A name or address that it has no longer.")
@click.option("--new-key", is_flag=True, help="Others may have the key: make another, void what it had.")
@click.option(
    "--days",
    type=click.IntRange(1, 36500),
    help="How long a device's is valid.  [default: as long as before]",
)
@click.option("--out", type=_folder, help="Where the files of one DEVICE are.  [default: devices/DEVICE]")
@click.option(
    "--fleet", "folder", default=".", type=_folder, help="Folder that `lichen fleet init` made.  [default: .]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def renew(
    *,
    devices: tuple[str, ...],
    broker: bool,
    add: tuple[str, ...],
    drop: tuple[str, ...],
    new_key: bool,
    days: int | None,
    out: Path | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Issue new certificates to DEVICEs or to the broker; the authority stays as it is."""
    broker = broker or bool(add or drop)
    if not devices and not broker:
        raise click.UsageError("name devices, or --broker")
    if out is not None and len(set(devices)) != 1:
        raise click.UsageError("--out is for one device")
    if days is not None and not devices:
        raise click.UsageError("--days is for devices: the broker's certificate has no end")
    fleet = FleetFolder(folder)
    server: RenewedBroker | None = None
    clients: list[RenewedDevice] = []
    notified = Notified(done=False, sentence="")
    if broker:
        server, notified = renew_broker(fleet, add=add, drop=drop, new_key=new_key)
    if devices:
        clients, notified = renew_devices(fleet, devices, days=days, new_key=new_key, out=out)
    if as_json:
        _print_json(server, clients, notified)
    else:
        _tell(fleet, server, clients, notified)
    if notified.failed:
        raise click.exceptions.Exit(1)


def _print_json(server: RenewedBroker | None, clients: list[RenewedDevice], notified: Notified) -> None:
    body = {
        "broker": asdict(server) if server else None,
        "devices": [{**asdict(client), "path": str(client.path)} for client in clients],
        "notified": asdict(notified),
    }
    click.echo(json.dumps(body, indent=2))


def _tell(
    fleet: FleetFolder, server: RenewedBroker | None, clients: list[RenewedDevice], notified: Notified
) -> None:
    if server is not None:
        click.echo(f"the broker's certificate is for {', '.join(server.hosts)}")
        click.echo(
            f"  new devices dial {fleet.configuration.identity.broker}: [identity] broker in fleet.toml"
        )
    for client in clients:
        until = f"until {client.expires}" if client.expires else "for ever"
        files = "device.key and device.pem" if client.new_key else "device.pem"
        click.echo(f"{client.device} has a certificate {until}: carry {files} of {client.path}")
        old = f"holds on until {client.old_holds_until}" if client.old_holds_until else "is void from now on"
        click.echo(f"  onto it: its agent takes them at its next connection; the one before {old}")
    click.echo(notified.sentence, err=notified.failed)
