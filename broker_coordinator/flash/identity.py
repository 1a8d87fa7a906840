"""What makes a card this device's: the four files that ``lichen fleet enroll`` issued."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.fleet.folder import FleetFolder
from fl_protocol.errors import ConfigError, StorageError

__all__ = ["STATE", "DeviceIdentity", "credential_of", "read_identity"]

STATE = "/var/lib/lichen"
_FILES = ("agent.toml", "ca.pem", "device.key", "device.pem")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIdentity:
    """``files`` by name, as they go onto the card."""

    device: str
    files: Mapping[str, bytes]


def credential_of(fleet: FleetFolder, device: str, *, issue: bool = True) -> tuple[Path, bool]:
    """The folder of a device's credential, and whether it was issued just now: an unknown device is
    enrolled, unless ``issue`` is False (then its folder is named, and is not there).

    Raises:
        ConfigError: a name that cannot be one.
        StorageError: the device is revoked, or its files are elsewhere.
    """
    folder = fleet.path / "devices" / device
    registry = fleet.registry
    known = registry.devices.get(device)
    if known is not None and known.revoked:
        raise StorageError(
            f"{device} was revoked on {known.revoked}",
            hint=f"lichen fleet enroll {device} takes it in again, with a new certificate",
        )
    if known is None:
        return (fleet.enroll(device, state=STATE).path if issue else folder), True
    if not (folder / "device.key").is_file():
        raise StorageError(
            f"{device} is enrolled, but its files are not in {folder}",
            hint=f"name their folder with --credential, or: lichen fleet enroll {device} --renew",
        )
    return folder, False


def read_identity(folder: Path, device: str) -> DeviceIdentity:
    """Read a credential. A relative state folder becomes that of the service, ``/var/lib/lichen``.

    Raises:
        ConfigError: it is another device's, or not what the agent can use.
        StorageError: a file cannot be read.
    """
    files = {}
    for name in _FILES:
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read {folder / name}: {error.strerror}") from None
    try:
        text = files["agent.toml"].decode()
        values = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{folder / 'agent.toml'} is no TOML: {error}") from None
    if values.get("device") != device:
        raise ConfigError(f"{folder / 'agent.toml'} is that of {values.get('device')!r}, not of {device}")
    tls = values.get("tls")
    wanted = {"ca": "ca.pem", "certificate": "device.pem", "key": "device.key"}
    named = {name: tls.get(name) for name in wanted} if isinstance(tls, dict) else {}
    if named != wanted:
        raise ConfigError(
            f"{folder / 'agent.toml'} names other certificates than those beside it",
            hint='[tls] with ca = "ca.pem", certificate = "device.pem", key = "device.key"',
        )
    if not str(values.get("state", "")).startswith("/"):
        text = re.sub(r"(?m)^state[ \t]*=.*\n", "", text)
        text = f'state = "{STATE}"\n{text}'
        if tomllib.loads(text).get("state") != STATE:
            raise ConfigError(
                f"{folder / 'agent.toml'} keeps its state in a relative folder", hint=f"use {STATE}"
            )
    return DeviceIdentity(device=device, files={**files, "agent.toml": text.encode()})
