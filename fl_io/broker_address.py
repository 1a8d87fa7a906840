"""Where a broker is, and whether anything answers there."""

import functools
import socket
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from fl_protocol.errors import ConfigError, TransportError

__all__ = ["CONNECT_TIMEOUT_S", "BrokerAddress", "reachable"]

CONNECT_TIMEOUT_S = 10.0
_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where a broker is: ``mqtt(s)://[user:password@]host[:port]`` or ``ws(s)://host[:port]/path``."""

    scheme: str
    host: str
    port: int
    path: str = ""
    username: str = ""
    password: str = ""

    @classmethod
    def parse(cls, url: str) -> "BrokerAddress":
        """Read a URL; raises ConfigError, which does not repeat a password."""
        return _parsed(url)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("mqtts", "wss")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def reachable(address: BrokerAddress, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Return if something listens at ``address``; raises TransportError with the reason."""
    try:
        socket.create_connection((address.host, address.port), timeout_s).close()
    except OSError as error:
        raise TransportError(
            f"no broker answers at {address}: {error.strerror or error}",
            hint="start one (mosquitto), or give its address with --broker mqtt://host:port",
        ) from None


def _without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else url


@functools.lru_cache(maxsize=16)
def _parsed(url: str) -> BrokerAddress:
    """One address, for all agents of a process that have it."""
    shown = f"broker {_without_password(url)!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ConfigError(
            f"{shown} is no broker's URL", hint="write mqtt://host:1883, mqtts://, ws:// or wss://"
        )
    return BrokerAddress(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        path=parts.path,
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )
