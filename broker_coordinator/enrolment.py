"""Enrolment: whom a running coordinator takes messages from.

The registry of ``lichen fleet`` is looked at before every commit, so that a device that was revoked is
refused from the next message on, whatever its connection to the broker still is.
"""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from broker_coordinator.fleet.registry import Registry, read_registry
from fl_protocol.errors import ConfigError, LichenError

__all__ = ["DAYS_OF_WARNING", "Enrolment"]

DAYS_OF_WARNING = 30
"""How long before its end a certificate is spoken of."""
_DAY_S = 86400.0

_log = logging.getLogger("lichen.coordinator")


class Enrolment:
    """The devices of a registry that are not revoked; all, where there is no registry.

    Raises:
        ConfigError: the registry is another fleet's, or none.
        StorageError: it cannot be read.
    """

    def __init__(self, fleet: str, path: Path | None) -> None:
        self._fleet = fleet
        self._path = path
        self._mark: tuple[int, ...] = ()
        self._active: frozenset[str] = frozenset()
        self._ends: Mapping[str, float] = {}
        self.fault = ""
        """Why the registry cannot be read now: the one read last holds on."""
        if path is not None:
            self._mark = _mark_of(path)
            self._take(read_registry(path))

    @property
    def enrolled(self) -> int | None:
        """How many devices may take part; None where anyone may."""
        return None if self._path is None else len(self._active)

    def admits(self, device: str) -> bool:
        """Whether to take anything from ``device``."""
        return self._path is None or device in self._active

    def expiring(self, now: float) -> dict[str, int]:
        """Certificates in use that end within 30 days of ``now`` (seconds since 1970), with the whole days
        that are left; below 0 it has ended."""
        soon = now + DAYS_OF_WARNING * _DAY_S
        return {name: math.floor((end - now) / _DAY_S) for name, end in self._ends.items() if end < soon}

    def refresh(self) -> bool:
        """Look at the registry; whether other devices than before may take part."""
        if self._path is None or (mark := _mark_of(self._path)) == self._mark:
            return False
        self._mark = mark
        before = self._active
        try:
            self._take(read_registry(self._path))
        except LichenError as error:
            self.fault = str(error)
            _log.error("the registry cannot be read, the last one holds on: %s", error)
            return False
        self.fault = ""
        return self._active != before

    def _take(self, registry: Registry) -> None:
        if registry.fleet != self._fleet:
            raise ConfigError(
                f"{self._path} is the registry of fleet {registry.fleet!r}, not of {self._fleet!r}"
            )
        self._active = registry.active
        self._ends = registry.ends


def _mark_of(path: Path) -> tuple[int, ...]:
    """Differs whenever the file was replaced."""
    try:
        there = os.stat(path)
    except OSError as error:
        return (error.errno or -1,)
    return there.st_ino, there.st_mtime_ns, there.st_size
