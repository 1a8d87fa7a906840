"""Renewal: new certificates in the place of old ones, from the authority that is there.

A certificate for the key that its holder has is no secret, and the one before holds on until its own end, so
that nobody is cut off while it is carried to the device. A new key is for one that others may have: what was
issued for the old one is void at once.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.fleet.authority import END, Issued, broker_hosts, serial_of
from broker_coordinator.fleet.folder import FleetFolder
from broker_coordinator.fleet.mosquitto import Notified
from broker_coordinator.fleet.registry import EnrolledDevice, Registry
from fl_io.broker_address import BrokerAddress
from fl_io.disk import write_file
from fl_protocol.errors import ConfigError, StorageError

__all__ = ["RenewedBroker", "RenewedDevice", "renew_broker", "renew_devices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewedDevice:
    """A device's new certificate, in the folder ``path``. ``old_holds_until`` is empty where the certificate
    before is void, times are ISO 8601 in UTC; ``expires`` is empty where it has no end."""

    device: str
    path: Path
    serial: str
    expires: str
    new_key: bool
    old_holds_until: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewedBroker:
    """The broker's new certificate, and the names and addresses that it is for."""

    hosts: tuple[str, ...]
    serial: str
    new_key: bool


def renew_devices(
    fleet: FleetFolder,
    devices: Sequence[str],
    *,
    days: int | None = None,
    new_key: bool = False,
    out: Path | None = None,
) -> tuple[list[RenewedDevice], Notified]:
    """Issue certificates to enrolled devices: to all of these, or to none.

    They are valid for ``days``, or for as long as the ones before were. ``out`` is the folder with the files
    of a single device (``devices/DEVICE`` unless named); its ``device.pem`` says for which key, without
    ``new_key``.

    Raises:
        ConfigError: a certificate that is not the device's, or an authority that cannot be read.
        StorageError: a device that is not enrolled, no certificate in its folder, or the disk refuses.
    """
    with fleet.locked():
        registry, authority = fleet.registry, fleet.authority()
        now = datetime.datetime.now(datetime.UTC)
        made: dict[str, tuple[Issued, RenewedDevice]] = {}
        for device in dict.fromkeys(devices):
            old = _enrolled(registry, device)
            folder = (out or fleet.path / "devices" / device).absolute()
            like = b"" if new_key else _certificate(folder, old)
            until = _end(old, now, days)
            issued = authority.issue_client(device, until, like=like)
            entry = _entry(old, issued, now, until, written=serial_of(like) if like else "")
            registry = registry.enrolled(entry)
            made[device] = issued, _renewed(entry, old, folder, new_key)
        # First of all they are known: a certificate that nobody knows of could never be revoked.
        fleet.commit(registry)
        for issued, renewed in made.values():
            _write_pair(renewed.path, "device", issued)
        return [renewed for _, renewed in made.values()], fleet.announce(registry, authority)


def renew_broker(
    fleet: FleetFolder, *, add: Sequence[str] = (), drop: Sequence[str] = (), new_key: bool = False
) -> tuple[RenewedBroker, Notified]:
    """Issue a certificate to the broker, for the names and addresses that it has and ``add``, not ``drop``.

    With ``new_key`` the old one is on the list of revocations, which only those heed whose ``ca.pem`` holds
    it. Key and certificate are two files: killed between them, the broker does not start until this is done
    once more.

    Raises:
        ConfigError: a name that is none, is not there to be dropped, or is dialled.
        StorageError: a file cannot be read, or the disk refuses.
    """
    with fleet.locked():
        registry, authority = fleet.registry, fleet.authority()
        old = _read(fleet.broker.path / "broker.pem")
        hosts = _hosts(broker_hosts(old), add, drop, _dialled(fleet))
        # From the key itself: the certificate beside it may be that of another, if we were killed before.
        key = b"" if new_key else _read(fleet.broker.path / "broker.key")
        issued = authority.issue_broker(hosts, key=key)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        registry = registry.broker_renewed(serial_of(old), now if new_key else "")
        fleet.commit(registry)
        _write_pair(fleet.broker.path, "broker", issued)
        renewed = RenewedBroker(hosts=tuple(hosts), serial=f"{issued.serial:x}", new_key=new_key)
        return renewed, fleet.announce(registry, authority)


def _enrolled(registry: Registry, device: str) -> EnrolledDevice:
    if device not in registry.devices:
        raise StorageError(f"{device[:80]} was never enrolled here", hint="lichen fleet list shows who was")
    if device not in registry.active:
        raise StorageError(
            f"{device} is revoked, since {registry.devices[device].revoked}",
            hint=f"lichen fleet enroll {device} takes it in again, with a new key",
        )
    return registry.devices[device]


def _certificate(folder: Path, old: EnrolledDevice) -> bytes:
    """What the device has now. One that is void is for a key that was given up, and must not come back;
    unless it is void because it lasted too long, and we were killed before its follower was written."""
    certificate = _read(
        folder / "device.pem", hint="name its folder with --out, or make a new key: --new-key"
    )
    if (serial := serial_of(certificate)) not in (*old.serials, old.written):
        raise ConfigError(
            f"{folder / 'device.pem'} is void, or none of ours (serial {serial[:16]})",
            hint="make a new key: --new-key",
        )
    return certificate


def _entry(
    old: EnrolledDevice, issued: Issued, now: datetime.datetime, until: datetime.datetime, *, written: str
) -> EnrolledDevice:
    """``written`` is the certificate in the device's folder for the key that it keeps; none with another.
    With the key stays each certificate that does not outlast the new one."""
    had = {old.serial: old.expires, **old.earlier} if written else {}
    earlier = {serial: end for serial, end in had.items() if _moment(end) <= until}
    return EnrolledDevice(
        device=old.device,
        serial=f"{issued.serial:x}",
        enrolled=now.isoformat(timespec="seconds"),
        expires="" if until == END else until.isoformat(timespec="seconds"),
        earlier=earlier,
        written="" if written in earlier else written,
    )


def _renewed(entry: EnrolledDevice, old: EnrolledDevice, folder: Path, new_key: bool) -> RenewedDevice:
    return RenewedDevice(
        device=entry.device,
        path=folder,
        serial=entry.serial,
        expires=entry.expires,
        new_key=new_key,
        old_holds_until=_moment(old.expires).isoformat(timespec="seconds")
        if old.serial in entry.earlier
        else "",
    )


def _end(old: EnrolledDevice, now: datetime.datetime, days: int | None) -> datetime.datetime:
    """Whole seconds, as a certificate has them."""
    if days is not None:
        return now.replace(microsecond=0) + datetime.timedelta(days=days)
    if not old.expires:
        return END
    return now.replace(microsecond=0) + (_moment(old.expires) - datetime.datetime.fromisoformat(old.enrolled))


def _moment(end: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(end) if end else END


def _dialled(fleet: FleetFolder) -> Mapping[str, str]:
    """The names that must stay, and where they are written."""
    return {
        BrokerAddress.parse(fleet.configuration.identity.broker).host: "[identity] broker",
        BrokerAddress.parse(fleet.configuration.broker).host: "broker",
    }


def _hosts(
    has: Sequence[str], add: Sequence[str], drop: Sequence[str], dialled: Mapping[str, str]
) -> list[str]:
    for host in drop:
        if host in dialled:
            raise ConfigError(
                f"{host} is dialled: {dialled[host]} in fleet.toml names it",
                hint="write another there first, and into the agent.toml of every device",
            )
        if host not in has:
            raise ConfigError(
                f"{host} is not in the broker's certificate", hint=f"there are {', '.join(has)}"
            )
    for host in add:
        BrokerAddress.parse(f"mqtts://[{host}]" if ":" in host else f"mqtts://{host}")
    return [host for host in dict.fromkeys([*has, *add]) if host not in drop]


def _write_pair(folder: Path, name: str, issued: Issued) -> None:
    if issued.key:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(folder / f"{name}.key", issued.key, purpose="fleet.file", mode=0o600)
    write_file(folder / f"{name}.pem", issued.certificate, purpose="fleet.file", mode=0o644)


def _read(path: Path, hint: str = "") -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", hint=hint) from None
