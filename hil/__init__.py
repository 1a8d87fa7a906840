"""Devices that are not, or not only, real: fleets of processes on one machine, and what they measure.

Names are imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hil.local_fleet import FleetOptions, LocalFleet
    from hil.processes import ManagedProcess

__all__ = [
    "FleetOptions",
    "LocalFleet",
    "ManagedProcess",
]

_HOMES = {
    "FleetOptions": "local_fleet",
    "LocalFleet": "local_fleet",
    "ManagedProcess": "processes",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
