"""``lichen fleet bundle``: makes a payload for devices, or checks one."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import click

from broker_coordinator.fleet.bundle import BundlePlan, make_bundle
from broker_coordinator.fleet.folder import FleetFolder
from broker_coordinator.fleet.payload import PayloadDescription, check_payload
from broker_coordinator.fleet.wheels import ARCHITECTURES, RUNTIMES
from broker_coordinator.keys import open_key
from fl_io.ed25519 import read_public_key, verifier
from fl_protocol.signed import KEY_ID_BYTES

__all__ = ["bundle"]


@click.command("bundle", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--arch", default="aarch64", show_default=True, type=click.Choice(sorted(ARCHITECTURES)))
@click.option(
    "--python",
    "pythons",
    default="3.11,3.13",
    show_default=True,
    help="Pythons of the devices: 3.11 is Debian 12's, 3.13 Debian 13's.",
)
@click.option("--runtime", type=click.Choice(RUNTIMES), help="[default: onnx; on armv7l numpy]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="[default: lichen-ARCH.tar.xz]",
)
@click.option(
    "--fleet",
    "folder",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    help="Whose coordinator signs it.  [default: this folder]",
)
@click.option(
    "--constraint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Versions of the packages, as in pip's constraints files.",
)
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Take wheels from this folder alone, and nothing from a network.",
)
@click.option(
    "--preset",
    default=6,
    show_default=True,
    type=click.IntRange(0, 9),
    help="How hard xz tries: 0 is quick, for a payload that is used once.",
)
@click.option(
    "--check",
    "checked",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Make none: check this one's signature and every file of it.",
)
@click.option("--key", help="With --check: the public key that must have signed it.  [default: the fleet's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bundle(
    *,
    arch: str,
    pythons: str,
    runtime: str | None,
    out: Path | None,
    folder: Path,
    constraint: Path | None,
    wheels: Path | None,
    preset: int,
    checked: Path | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Make a payload: agent, libraries, unit and installer in one signed file, for devices without pip."""
    if checked is not None:
        _check(checked, key or _fleets_key(folder), as_json=as_json)
        return
    if key is not None:
        raise click.UsageError("--key goes with --check")
    plan = BundlePlan(
        arch=arch,
        pythons=[part.strip() for part in pythons.split(",")],
        runtime=runtime or "",
        constraint=constraint,
        offline=wheels,
        preset=preset,
    )
    signing = open_key(FleetFolder(folder).configuration.state)
    made = make_bundle(plan, out or Path(f"lichen-{arch}.tar.xz"), signing.sign)
    if as_json:
        click.echo(json.dumps({**asdict(made), "path": str(made.path)}, indent=2))
        return
    click.echo(f"{made.path}: {made.bytes / 1e6:.1f} MB, sha256 {made.sha256}")
    _tell(made.description)
    click.echo("on a device: sh install.sh --payload FILE --config FOLDER (install.sh is in it, too)")


def _check(path: Path, key: str, *, as_json: bool) -> None:
    raw = read_public_key(key)
    trusted, key_id = verifier([raw]), hashlib.sha256(raw).digest()[:KEY_ID_BYTES]
    found = check_payload(path, lambda signature, signed: trusted(key_id, signature, signed))
    if as_json:
        click.echo(json.dumps({"ok": True, "path": str(path), **asdict(found)}, indent=2))
        return
    click.echo(
        f"{path} is whole and signed by {key}: {found.files} files, {found.bytes / 1e6:.1f} MB unpacked"
    )
    _tell(found.description)


def _fleets_key(folder: Path) -> str:
    return open_key(FleetFolder(folder).configuration.state).public_key


def _tell(description: PayloadDescription) -> None:
    pythons = " and ".join(description.pythons)
    click.echo(
        f"  Lichen {description.lichen} for {description.arch}, Python {pythons}: {description.runtime}"
    )
    click.echo("  " + ", ".join(f"{name} {version}" for name, version in description.packages.items()))
    if description.debian:
        click.echo(f"  from the device's own Debian: {' '.join(description.debian)}")
