"""The registry of a fleet: which devices are enrolled, which were revoked, and every serial that is void.

One JSON file, which everything else is derived from: the broker's rights and list of revocations are
written anew from it, and a running coordinator reads it to know whom to take.
"""

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fl_io.disk import write_file
from fl_protocol.errors import ConfigError, StorageError
from fl_protocol.topics import valid_name

__all__ = ["EnrolledDevice", "Registry", "read_registry", "write_registry"]

_DAY_S = 86400.0
_GRACE = datetime.timedelta(days=30)
_FORMAT = "lichen-registry/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolledDevice:
    """A device that was enrolled. Times are ISO 8601 in UTC, for people to read; ``serial`` is that of its
    newest certificate, in hex; ``expires`` and ``revoked`` are empty where it does not and is not.
    ``earlier`` are those of certificates for the same key that hold on, each with its own end. ``written``
    is one for the same key that is void, and that the device's folder may hold until the newest is written
    there: it shows which key that is."""

    device: str
    serial: str
    enrolled: str
    expires: str = ""
    revoked: str = ""
    earlier: Mapping[str, str] = field(default_factory=dict)
    written: str = ""

    @property
    def serials(self) -> tuple[str, ...]:
        """All that are in use."""
        return (self.serial, *self.earlier)

    def days_left(self, now: float) -> int | None:
        """Whole days from ``now`` (seconds since 1970) to the end of its newest certificate, below 0 if that
        is over; None where it has no end."""
        if not self.expires:
            return None
        return math.floor((datetime.datetime.fromisoformat(self.expires).timestamp() - now) / _DAY_S)

    def body(self) -> dict[str, Any]:
        """As JSON has it. What most do not have is left out: releases before it read the others."""
        body = asdict(self)
        for name in ("earlier", "written"):
            if not body[name]:
                del body[name]
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """All devices by name. ``void`` are the revoked serials, with when; ``edition`` grows by each change.
    ``brokers`` are the certificates that the broker's key had before its newest, and that still hold."""

    fleet: str
    edition: int = 0
    devices: Mapping[str, EnrolledDevice] = field(default_factory=dict)
    void: Mapping[str, str] = field(default_factory=dict)
    brokers: tuple[str, ...] = ()

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
        """With a device added; the certificates that it had are void, but for its ``earlier``."""
        old = self.devices.get(device.device)
        gone = () if old is None else [serial for serial in old.serials if serial not in device.earlier]
        when = device.enrolled if old is None else old.revoked or device.enrolled
        void = {**self.void, **dict.fromkeys(gone, when)}
        devices = {**self.devices, device.device: device}
        return replace(self, edition=self.edition + 1, devices=dict(sorted(devices.items())), void=void)

    def revoked(self, device: str, when: str) -> "Registry":
        """With a device, which must be there, revoked."""
        old = self.devices[device]
        return replace(
            self,
            edition=self.edition + 1,
            devices={**self.devices, device: replace(old, revoked=when, earlier={}, written="")},
            void={**self.void, **dict.fromkeys(old.serials, when)},
        )

    def pruned(self, now: datetime.datetime) -> "Registry":
        """Without the earlier certificates that ended a month ago and more: nobody takes them any more, not
        even by a clock that is somewhat behind."""
        devices = {
            name: replace(
                device, earlier={serial: end for serial, end in device.earlier.items() if not _over(end, now)}
            )
            for name, device in self.devices.items()
        }
        return replace(self, devices=devices)

    def broker_renewed(self, old: str, void_since: str = "") -> "Registry":
        """With the broker's certificate ``old`` superseded; void, and all before it, if its key is given up
        ``void_since`` then."""
        before = tuple(dict.fromkeys((*self.brokers, old)))
        if not void_since:
            return replace(self, edition=self.edition + 1, brokers=before)
        void = {**self.void, **dict.fromkeys(before, void_since)}
        return replace(self, edition=self.edition + 1, brokers=(), void=void)


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
        "devices": [device.body() for device in registry.devices.values()],
        "void": dict(registry.void),
    }
    if registry.brokers:
        body["brokers"] = list(registry.brokers)
    write_file(path, (json.dumps(body, indent=1) + "\n").encode(), purpose="fleet.registry", mode=0o644)


def _over(end: str, now: datetime.datetime) -> bool:
    return bool(end) and datetime.datetime.fromisoformat(end) + _GRACE < now


def _enrolled(entry: Mapping[str, Any]) -> EnrolledDevice:
    """A list of earlier ones is of a release that did not note their ends: none is later than the newest."""
    earlier = entry.get("earlier", {})
    if isinstance(earlier, list):
        earlier = dict.fromkeys(earlier, entry.get("expires", ""))
    return EnrolledDevice(**{**entry, "earlier": dict(earlier)})


def _registry(body: Any) -> Registry:
    if body["format"] != _FORMAT:
        raise ValueError(f"its format is {body['format']!r}, not {_FORMAT!r}")
    devices = [_enrolled(entry) for entry in body["devices"]]
    for device in devices:
        for end in filter(None, (device.expires, *device.earlier.values())):
            datetime.datetime.fromisoformat(end)
        if not valid_name(device.device):
            raise ValueError(f"{device.device!r} is no device's name")
        for serial in device.serials:
            int(serial, 16)
    return Registry(
        fleet=str(body["fleet"]),
        edition=int(body["edition"]),
        devices={device.device: device for device in devices},
        void={str(serial): str(when) for serial, when in body["void"].items()},
        brokers=tuple(f"{int(serial, 16):x}" for serial in body.get("brokers", ())),
    )
