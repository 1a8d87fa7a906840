"""The tables of FLEET.toml on how a coordinator is run: what it keeps, sends, serves, and whom it takes."""

from dataclasses import dataclass
from pathlib import Path

from fl_io.configuration import check_rules
from fl_io.tls import TlsFiles

__all__ = [
    "HorizonTable",
    "HttpTable",
    "IdentityTable",
    "IngestTable",
    "PublishTable",
    "RetentionTable",
    "TlsTable",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizonTable:
    """``[horizon]``: an update trained more than ``versions`` ago is stale."""

    versions: int = 20

    def __post_init__(self) -> None:
        check_rules((self.versions >= 1, "versions must be at least 1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionTable:
    """``[retention]``: how much of the past can be replayed."""

    versions: int = 50
    bytes: int = 2_000_000_000
    days: float = 7.0

    def __post_init__(self) -> None:
        check_rules(
            (self.versions >= 1, "versions must be at least 1"),
            (self.bytes >= 0 and self.days >= 0, "bytes and days must not be negative"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishTable:
    """``[publish]``: at most every ``every_s``; ``keep`` versions stay on the broker."""

    every_s: float = 0.0
    keep: int = 3
    retain: str = "auto"

    def __post_init__(self) -> None:
        check_rules(
            (self.every_s >= 0, "every_s must not be negative"),
            (self.keep >= 3, "keep must be at least 3: a device may still be fetching an older version"),
            (self.retain in ("auto", "never"), "retain must be auto or never"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestTable:
    """``[ingest]``: bytes of open credit in all, and messages per commit."""

    window_bytes: int = 8 << 20
    batch: int = 512

    def __post_init__(self) -> None:
        check_rules(
            (self.window_bytes >= 1 << 17, "window_bytes must be at least 131072"),
            (1 <= self.batch <= 4096, "batch must be from 1 to 4096"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTable:
    """``[http]``: metrics and health, for whoever reaches ``host``; ``port`` 0 takes a free one."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 0

    def __post_init__(self) -> None:
        check_rules(
            (bool(self.host), "host must be an address, as 127.0.0.1"),
            (0 <= self.port <= 65535, "port must be from 0 to 65535"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsTable:
    """``[tls]``: PEM files of the broker connection."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def files(self) -> TlsFiles:
        """As the transport takes them."""
        return TlsFiles(ca=self.ca, certificate=self.certificate, key=self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityTable:
    """``[identity]``: what ``lichen fleet`` keeps. With a ``registry`` only its devices are taken, unless
    revoked. ``broker`` is the URL that devices are given, ``reload`` a command that has the broker read its
    files again (empty: SIGHUP to the mosquitto of ``broker/mosquitto.pid``)."""

    registry: Path | None = None
    broker: str = ""
    reload: str = ""
