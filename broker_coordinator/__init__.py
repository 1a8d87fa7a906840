"""The program beside the broker: it takes updates, counts each once, and makes versions of them.

Names are imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_coordinator.aggregation.aggregator import Aggregator, UpdateContext
    from broker_coordinator.aggregation.server_optimizer import ServerOptimizer
    from broker_coordinator.aggregation.staleness import StalenessWeight
    from broker_coordinator.books.audit import AuditReport
    from broker_coordinator.books.backup import back_up
    from broker_coordinator.books.export import export_version
    from broker_coordinator.configuration import FleetConfiguration, read_fleet
    from broker_coordinator.coordinator import Coordinator
    from broker_coordinator.embedded_broker import EmbeddedBroker
    from broker_coordinator.selection import Selection
    from broker_coordinator.service import read_status, run_coordinator
    from broker_coordinator.storage.sqlite_store import SqliteStore
    from broker_coordinator.storage.store import Store

__all__ = [
    "Aggregator",
    "AuditReport",
    "Coordinator",
    "EmbeddedBroker",
    "FleetConfiguration",
    "Selection",
    "ServerOptimizer",
    "SqliteStore",
    "StalenessWeight",
    "Store",
    "UpdateContext",
    "back_up",
    "export_version",
    "read_fleet",
    "read_status",
    "run_coordinator",
]

_HOMES = {
    "Aggregator": "aggregation.aggregator",
    "AuditReport": "books.audit",
    "Coordinator": "coordinator",
    "EmbeddedBroker": "embedded_broker",
    "FleetConfiguration": "configuration",
    "Selection": "selection",
    "ServerOptimizer": "aggregation.server_optimizer",
    "SqliteStore": "storage.sqlite_store",
    "StalenessWeight": "aggregation.staleness",
    "Store": "storage.store",
    "UpdateContext": "aggregation.aggregator",
    "back_up": "books.backup",
    "export_version": "books.export",
    "read_fleet": "configuration",
    "read_status": "service",
    "run_coordinator": "service",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
