"""``agent.toml``: what a person tells one device."""

import dataclasses
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

from fl_io.broker_address import BrokerAddress
from fl_io.configuration import read_configuration
from fl_io.tls import TlsFiles
from fl_protocol.errors import ConfigError
from fl_protocol.topics import valid_name

__all__ = [
    "AgentConfiguration",
    "GateSettings",
    "OutboxSettings",
    "WorkerSettings",
    "read_agent_configuration",
]

KNOWN_RUNTIMES = ("onnx", "litert", "tflite", "numpy")
_KEY = re.compile(r"ed25519:[0-9a-fA-F]{64}")
_HOURS = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)")
_TRAINER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSettings:
    """``[outbox]``: the oldest updates give way beyond ``max_bytes``, and any after ``max_age_s``."""

    max_bytes: int = 32 << 20
    max_age_s: float = 30 * 86400.0

    def __post_init__(self) -> None:
        if self.max_bytes < 64 << 10 or self.max_age_s <= 0:
            raise ValueError("max_bytes must be at least 65536 and max_age_s positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """``[gates]``: when this device may train. 0, false and "" switch a gate off.

    ``quiet_hours`` is ``HH:MM-HH:MM`` in local time, across midnight too; ``max_load`` is the load
    average of one minute, training itself included. ``min_samples = 0`` is for a trainer that brings its own.
    ``min_memory_mb`` must be free before a training begins. Off the mains, the battery must be at
    ``min_battery``, a share of its charge; a training under way ends where it falls below.
    """

    min_samples: int = 1
    quiet_hours: str = ""
    mains_only: bool = False
    max_temperature_c: float = 0.0
    max_load: float = 0.0
    min_memory_mb: float = 0.0
    min_battery: float = 0.0

    def __post_init__(self) -> None:
        if self.min_samples < 0:
            raise ValueError("min_samples must not be negative")
        if self.min_memory_mb < 0 or not 0 <= self.min_battery < 1:
            raise ValueError("min_memory_mb must not be negative, min_battery be a share from 0, below 1")
        if self.quiet_hours and _HOURS.fullmatch(self.quiet_hours) is None:
            raise ValueError(f"quiet_hours must be written as 22:00-06:30, not {self.quiet_hours!r}")

    @property
    def quiet_minutes(self) -> tuple[int, int] | None:
        """Begin and end of the quiet hours, in minutes since midnight."""
        match = _HOURS.fullmatch(self.quiet_hours)
        if match is None:
            return None
        begin_h, begin_m, end_h, end_m = (int(part) for part in match.groups())
        return 60 * begin_h + begin_m, 60 * end_h + end_m


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """``[worker]``: the process that trains. ``inline`` trains inside the agent's own process.

    ``linger_s`` is how long it waits for its next job; a job that takes ``deadline_factor`` times the
    plan's deadline is killed. A training that lasts leaves a checkpoint every ``checkpoint_every_s`` seconds:
    so much of it a power cut may cost. 0 leaves one after each step, which wears flash memory out.
    """

    kind: str = "process"
    linger_s: float = 10.0
    memory_mb: int = 512
    nice: int = 10
    deadline_factor: float = 2.0
    checkpoint_every_s: float = 120.0

    def __post_init__(self) -> None:
        if self.kind not in ("process", "inline"):
            raise ValueError(f"kind must be 'process' or 'inline', not {self.kind!r}")
        if min(self.linger_s, self.memory_mb, self.checkpoint_every_s) < 0:
            raise ValueError("linger_s, memory_mb and checkpoint_every_s must not be negative")
        if not 0 <= self.nice <= 19 or self.deadline_factor < 1:
            raise ValueError("nice must be 0 to 19, deadline_factor at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfiguration:
    """One device of one fleet.

    ``state`` is the folder that the agent alone writes, ``samples`` the sample store that it shares with
    the app (``state/samples.db`` unless named). Commands and manifests must be signed by one of
    ``trusted_keys``; ``insecure`` takes anybody's, for fleets on one machine. ``trainer`` (``module:Class``)
    is looked for on Python's path and in the folder ``trainer_path`` (that of the file unless named). After
    ``safe_after_starts`` starts in a row that did not last, the agent does not train for a while; 0: never.
    """

    device: str
    fleet: str
    broker: str
    state: Path
    task: str = "main"
    samples: Path | None = None
    trusted_keys: tuple[str, ...] = ()
    insecure: bool = False
    runtimes: tuple[str, ...] = KNOWN_RUNTIMES
    trainer: str = ""
    trainer_path: Path | None = None
    keepalive_s: int = 600
    safe_after_starts: int = 5
    tls: TlsFiles = field(default_factory=TlsFiles)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    gates: GateSettings = field(default_factory=GateSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def samples_path(self) -> Path:
        """Where the sample store is."""
        return self.samples or _samples_in(self.state)

    @property
    def address(self) -> BrokerAddress:
        """Where the broker is."""
        return BrokerAddress.parse(self.broker)

    @property
    def raw_keys(self) -> tuple[bytes, ...]:
        """The trusted public keys, 32 bytes each."""
        return tuple(bytes.fromhex(key.partition(":")[2]) for key in self.trusted_keys)

    def _faults(self) -> list[str]:
        faults = [
            f"{name} {value!r} must be 1 to 64 of A-Z a-z 0-9 . _ -"
            for name, value in (("device", self.device), ("fleet", self.fleet), ("task", self.task))
            if not valid_name(value)
        ]
        try:
            BrokerAddress.parse(self.broker)
        except ConfigError as error:
            faults.append(str(error))
        if bool(self.trusted_keys) == self.insecure:
            faults.append("give the coordinator's key in trusted_keys, or (on one machine) insecure = true")
        faults += [
            f"trusted key {key[:80]!r} must be ed25519: and 64 hex digits"
            for key in self.trusted_keys
            if _KEY.fullmatch(key) is None
        ]
        unknown = [name for name in self.runtimes if name not in KNOWN_RUNTIMES]
        if unknown or not self.runtimes:
            faults.append(f"runtimes must name some of {', '.join(KNOWN_RUNTIMES)}, not {unknown}")
        if not self.trainer and not self.gates.min_samples:
            faults.append("min_samples = 0 is for a trainer of your own that brings its samples")
        if self.trainer and _TRAINER.fullmatch(self.trainer) is None:
            faults.append(f"trainer must be written as module:Class, not {self.trainer!r}")
        if not 10 <= self.keepalive_s <= 65535:
            faults.append("keepalive_s must be 10 to 65535 seconds")
        if self.safe_after_starts < 0:
            faults.append("safe_after_starts must not be negative")
        return faults


def read_agent_configuration(path: Path) -> AgentConfiguration:
    """Read ``agent.toml``.

    Raises:
        ConfigError: with every fault, each with file and line.
    """
    configuration = read_configuration(path, AgentConfiguration)
    if configuration.trainer_path is None:
        return dataclasses.replace(configuration, trainer_path=path.absolute().parent)
    return configuration


@functools.lru_cache(maxsize=16)
def _samples_in(state: Path) -> Path:
    """Where samples are unless a file is named: one path for all agents that have such a folder."""
    return state / "samples.db"
