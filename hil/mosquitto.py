"""The mosquitto of this machine: where it is, and ports that nobody listens on."""

import shutil
import socket

from fl_protocol.errors import ConfigError

__all__ = ["free_ports", "mosquitto_program"]

_SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin"


def mosquitto_program() -> str:
    """Where it is; Debian installs it where an ordinary user's PATH does not look.

    Raises:
        ConfigError: it is not installed.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path=_SYSTEM_FOLDERS)
    if program is None:
        raise ConfigError("mosquitto is not installed", hint="apt install mosquitto")
    return program


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now, all different."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
