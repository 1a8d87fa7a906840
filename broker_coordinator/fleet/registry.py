"""The registry of a fleet: which devices are enrolled, which were revoked, and every serial that is void.

One JSON file, which everything else is derived from: the broker's rights and list of revocations are
written anew from it, and a running coordinator reads it to know whom to take.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fl_io.disk import write_file
from fl_protocol.errors import ConfigError, StorageError
from fl_protocol.topics import valid_name

__all__ = ["EnrolledDevice", "Registry", "read_registry", "write_registry"]

_FORMAT = "lichen-registry/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolledDevice:
    """A device that was enrolled. Times are ISO 8601 in UTC, for people to read; ``serial`` is that of its
    newest certificate, in hex; ``expires`` and ``revoked`` are empty where it does not and is not."""

    device: str
    serial: str
    enrolled: str
    expires: str = ""
    revoked: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """All devices by name. ``void`` are the revoked serials, with when; ``edition`` grows by each change."""

    fleet: str
    edition: int = 0
    devices: Mapping[str, EnrolledDevice] = field(default_factory=dict)
    void: Mapping[str, str] = field(default_factory=dict)

    @property
    def active(self) -> frozenset[str]:
        """The devices that may take part."""
        return frozenset(name for name, device in self.devices.items() if not device.revoked)

    @property
    def ends(self) -> dict[str, float]:
        """When certificates that are in use end, in seconds since 1970; those that never do are left out."""
        return {
            name: datetime.datetime.fromisoformat(device.expires).timestamp()
            for name, device in self.devices.items()
            if device.expires and not device.revoked
        }

    def enrolled(self, device: EnrolledDevice) -> "Registry":
        """With a device added; the certificate that it had is void."""
        old = self.devices.get(device.device)
        void = self.void if old is None else {**self.void, old.serial: old.revoked or device.enrolled}
        devices = {**self.devices, device.device: device}
        return replace(self, edition=self.edition + 1, devices=dict(sorted(devices.items())), void=void)

    def revoked(self, device: str, when: str) -> "Registry":
        """With a device, which must be there, revoked."""
        old = self.devices[device]
        return replace(
            self,
            edition=self.edition + 1,
            devices={**self.devices, device: replace(old, revoked=when)},
            void={**self.void, old.serial: when},
        )


def read_registry(path: Path) -> Registry:
    """Read it.

    Raises:
        ConfigError: it is not a registry.
        StorageError: it cannot be read.
    """
    try:
        body = json.loads(path.read_bytes())
        return _registry(body)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror}", hint="is this the folder that `lichen fleet init` made?"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no registry of a fleet: {error}", hint="restore it from a backup"
        ) from None


def write_registry(path: Path, registry: Registry) -> None:
    """Replace it durably; raises StorageError."""
    body = {
        "format": _FORMAT,
        "fleet": registry.fleet,
        "edition": registry.edition,
        "devices": [asdict(device) for device in registry.devices.values()],
        "void": dict(registry.void),
    }
    write_file(path, (json.dumps(body, indent=1) + "\n").encode(), purpose="fleet.registry", mode=0o644)


def _registry(body: Any) -> Registry:
    if body["format"] != _FORMAT:
        raise ValueError(f"its format is {body['format']!r}, not {_FORMAT!r}")
    devices = [EnrolledDevice(**entry) for entry in body["devices"]]
    for device in devices:
        if device.expires:
            datetime.datetime.fromisoformat(device.expires)
        if not valid_name(device.device):
            raise ValueError(f"{device.device!r} is no device's name")
        int(device.serial, 16)
    return Registry(
        fleet=str(body["fleet"]),
        edition=int(body["edition"]),
        devices={device.device: device for device in devices},
        void={str(serial): str(when) for serial, when in body["void"].items()},
    )
