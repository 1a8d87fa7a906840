"""``lichen fleet flash``: a card for each device."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from broker_coordinator.flash.boot import BootPartition, FirstBoot, find_boot
from broker_coordinator.flash.card import FlashedCard, card_files, check_room, payload_name, write_card
from broker_coordinator.flash.devices_csv import ListedDevice, read_devices
from broker_coordinator.flash.first_boot import FirstBootPlan, Wifi
from broker_coordinator.flash.identity import DeviceIdentity, credential_of, read_identity
from broker_coordinator.flash.image import CardImage
from broker_coordinator.flash.target import BlockDevice, inspect_target, open_target
from broker_coordinator.fleet.folder import FleetFolder
from fl_protocol.errors import ConfigError, StorageError
from fl_protocol.topics import valid_name

__all__ = ["flash"]

MAX_PAYLOAD_BYTES = 1 << 30
_file = click.Path(dir_okay=False, path_type=Path)
_folder = click.Path(file_okay=False, path_type=Path)


@click.command("flash", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--image", required=True, type=_file, help="Stock image of the system: raw, .xz or .gz.")
@click.option("--device-id", "device", help="The device; enrolled if it is not yet.")
@click.option("--many", type=_file, help="CSV with a column device, and perhaps out: a card for each.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="CARD.img or /dev/sdX; with --many also a folder."
)
@click.option("--fleet", "fleet", default=".", type=_folder, help="Folder of the fleet.  [default: this one]")
@click.option("--credential", type=_folder, help="What `lichen fleet enroll` made.  [default: devices/ID]")
@click.option("--wifi", "ssid", metavar="SSID", help="Wi-Fi network; its password is asked for.")
@click.option("--wifi-password-file", type=_file, help="A file with the password in its first line.")
@click.option("--wifi-country", default="", metavar="CC", help="Where it is: two letters, such as DE.")
@click.option("--ssh-key", "ssh_key", type=_file, help="Public key that lets you in.")
@click.option("--user", default="pi", show_default=True, help="Whom it lets in; made if need be, with sudo.")
@click.option("--payload", type=_file, help="What `lichen fleet bundle` made: installed at the first boot.")
@click.option("--dry-run", is_flag=True, help="Look and check; write nothing, enroll nobody.")
@click.option("--replace", is_flag=True, help="Replace a CARD.img that exists.")
@click.option("--yes", is_flag=True, help="Do not ask before a device is overwritten.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def flash(
    *,
    image: Path,
    device: str | None,
    many: Path | None,
    out: Path | None,
    fleet: Path,
    credential: Path | None,
    ssid: str | None,
    wifi_password_file: Path | None,
    wifi_country: str,
    ssh_key: Path | None,
    user: str,
    payload: Path | None,
    dry_run: bool,
    replace: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write a card that boots as a device of the fleet: a stock image, changed on its FAT partition alone."""
    if (device is None) == (many is None):
        raise click.UsageError("give either --device-id or --many")
    if many is not None and credential is not None:
        raise click.UsageError("--credential is one device's")
    cards = _cards(device, many, out)
    wifi = _wifi(ssid, wifi_password_file, wifi_country)
    keys = _ssh_keys(ssh_key)
    plans = [FirstBootPlan(device=name, wifi=wifi, ssh_keys=keys, user=user) for name, _ in cards]
    content = _payload(payload)
    owner = FleetFolder(fleet) if credential is None else None

    def identity(name: str, issue: bool) -> DeviceIdentity | None:
        if credential is not None:
            return read_identity(credential, name)
        assert owner is not None
        place, fresh = credential_of(owner, name, issue=issue)
        if fresh and not as_json:
            click.echo(f"{name} is {'enrolled' if issue else 'not enrolled yet: it will be'}", err=True)
        return read_identity(place, name) if issue or not fresh else None

    with CardImage(image) as opened:
        boot = find_boot(opened.read)
    # All that can be refused is refused before the first card is begun.
    for plan, (name, target) in zip(plans, cards, strict=True):
        known = identity(name, False) or DeviceIdentity(device=name, files={})
        disk = inspect_target(target, replace=replace)
        check_room(boot, card_files(plan, boot.first_boot, known, content), disk.size if disk else None)
    if dry_run:
        _tell_plan(image, boot, cards, as_json=as_json)
        return
    done: list[FlashedCard] = []
    for plan, (name, target) in zip(plans, cards, strict=True):
        disk = inspect_target(target, replace=replace)
        if disk is not None:
            _ask(name, target, disk, yes=yes)
        held = identity(name, True)
        assert held is not None
        with CardImage(image) as opened, open_target(target, replace=replace) as card, _bar(name) as progress:
            done.append(
                write_card(opened, card, plan=plan, identity=held, payload=content, progress=progress)
            )
        if not as_json:
            _tell_card(done[-1])
    if as_json:
        bodies = [_body(card) for card in done]
        click.echo(json.dumps(bodies[0] if many is None else bodies, indent=2))


def _cards(device: str | None, many: Path | None, out: Path | None) -> list[tuple[str, Path]]:
    """Each device with its target."""
    if device is not None and not valid_name(device):
        raise ConfigError(
            f"device {device[:80]!r}: a name is 1 to 64 of A-Z a-z 0-9 . _ - and begins with no dot"
        )
    listed = (ListedDevice(device=device),) if device is not None else read_devices(many or Path())
    cards = []
    for entry in listed:
        target = entry.out or out
        if target is None:
            raise click.UsageError(f"where does the card of {entry.device} go? give --out")
        if entry.out is None and many is not None and not target.is_block_device():
            if not target.is_dir():
                raise ConfigError(f"{target} is no folder", hint="with --many, --out is a folder or a device")
            target = target / f"{entry.device}.img"
        cards.append((entry.device, target))
    return cards


def _wifi(ssid: str | None, password_file: Path | None, country: str) -> Wifi | None:
    if ssid is None:
        if password_file is not None or country:
            raise click.UsageError("--wifi names the network that this is about")
        return None
    if password_file is not None:
        lines = _read(password_file, limit=4096).decode("utf-8", "replace").splitlines()
        password = lines[0] if lines else ""
    else:
        password = click.prompt(f"Password of Wi-Fi {ssid}", hide_input=True, err=True)
    return Wifi(ssid=ssid, password=password, country=country)


def _ssh_keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    lines = _read(path, limit=65536).decode("utf-8", "replace").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} has no key in it")
    return keys


def _payload(path: Path | None) -> bytes | None:
    if path is None:
        return None
    content = _read(path, limit=MAX_PAYLOAD_BYTES)
    payload_name(content[:8])
    return content


def _read(path: Path, *, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > limit:
        raise ConfigError(f"{path} has more than {limit} bytes")
    return content


def _ask(name: str, target: Path, disk: BlockDevice, *, yes: bool) -> None:
    if yes:
        return
    what = f"{target} ({disk.model or 'no model'}, {disk.size / 1e9:.1f} GB)"
    warning = "" if disk.removable else " It does not look like a card: it is not removable."
    if not sys.stdin.isatty():
        raise StorageError(f"all of {what} would be overwritten", hint="give --yes, if that is right")
    click.confirm(f"Card of {name}: overwrite all of {what}?{warning}", abort=True, err=True)


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {
            stage: bar.add_task(f"{name}: {stage}", total=1.0, start=False) for stage in ("write", "verify")
        }

        def progress(stage: str, fraction: float) -> None:
            bar.start_task(tasks[stage])
            bar.update(tasks[stage], completed=fraction)

        yield progress


def _tell_plan(image: Path, boot: BootPartition, cards: list[tuple[str, Path]], *, as_json: bool) -> None:
    if as_json:
        plan = {
            "image": str(image),
            "table": boot.table.scheme,
            "partition": boot.partition.number,
            "file_system": boot.kind,
            "first_boot": boot.first_boot.value,
            "card_bytes": boot.table.end,
            "cards": [{"device": name, "out": str(target)} for name, target in cards],
        }
        click.echo(json.dumps(plan, indent=2))
        return
    click.echo(
        f"{image}: {boot.table.scheme}, boots from partition {boot.partition.number} ({boot.kind}),"
        f" first boot by {boot.first_boot.value}; a card of {boot.table.end / 1e9:.2f} GB or more"
    )
    for name, target in cards:
        click.echo(f"  {name} -> {target}")
    click.echo("nothing was written")


def _tell_card(card: FlashedCard) -> None:
    click.echo(f"{card.out}: card of {card.device}, {card.size} bytes read back, sha256 {card.sha256}")
    if not card.memory_limit:
        click.echo("  no cmdline.txt: whether memory limits hold is up to the image", err=True)
    if card.first_boot is FirstBoot.SCRIPT:
        click.echo("  its first boot restarts it once or twice")


def _body(card: FlashedCard) -> dict[str, object]:
    return {
        "device": card.device,
        "out": str(card.out),
        "first_boot": card.first_boot.value,
        "bytes": card.size,
        "sha256": card.sha256,
        "files": list(card.files),
        "memory_limit": card.memory_limit,
    }
