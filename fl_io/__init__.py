"""The machine as both sides use it: disk, clock and the broker connection. Everything else is pure.

Names are imported at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_io.broker_address import BrokerAddress, reachable
    from fl_io.clock import SystemClock
    from fl_io.configuration import read_configuration
    from fl_io.crash import crash_point
    from fl_io.disk import DISK, Disk, RealDisk, write_file
    from fl_io.ed25519 import new_private_key, public_key_text, read_public_key, signer, unsigned, verifier
    from fl_io.mqtt import MqttTransport
    from fl_io.tls import TlsFiles

__all__ = [
    "DISK",
    "BrokerAddress",
    "Disk",
    "MqttTransport",
    "RealDisk",
    "SystemClock",
    "TlsFiles",
    "crash_point",
    "new_private_key",
    "public_key_text",
    "reachable",
    "read_configuration",
    "read_public_key",
    "signer",
    "unsigned",
    "verifier",
    "write_file",
]

_HOMES = {
    "DISK": "disk",
    "BrokerAddress": "broker_address",
    "Disk": "disk",
    "MqttTransport": "mqtt",
    "RealDisk": "disk",
    "SystemClock": "clock",
    "TlsFiles": "tls",
    "crash_point": "crash",
    "new_private_key": "ed25519",
    "public_key_text": "ed25519",
    "reachable": "broker_address",
    "read_configuration": "configuration",
    "read_public_key": "ed25519",
    "signer": "ed25519",
    "unsigned": "ed25519",
    "verifier": "ed25519",
    "write_file": "disk",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
