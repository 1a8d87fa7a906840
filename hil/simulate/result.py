"""What a simulation gave: figures as values, one row for each version."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SimulationResult", "VersionRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One version: when it closed in virtual seconds, with how many updates in all versions so far, all MQTT
    bytes up and down until then, and how good it is (None where that was not measured): ``worst_group`` is
    the accuracy on the user, or class, that is served worst."""

    version: int
    virtual_s: float
    updates: int
    bytes_up: int
    bytes_down: int
    accuracy: float | None = None
    loss: float | None = None
    worst_group: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """One run.

    ``accuracy`` is that of the newest version that was measured, ``by_group`` the same on each group of rows,
    which are those of a ``user`` or ``class`` (``groups_of``): by ``evaluation`` samples where there are
    any, else as devices report on what they hold out (``accuracy_source``). ``bytes_up`` and ``bytes_down``
    count MQTT 3.1.1 at QoS 1 whole, acknowledgements too, without TCP and TLS; ``payload_bytes`` the payloads
    alone of all ``encoded`` updates. ``state_hash`` is the sha256 of the last version's state, in hex: the
    same seed gives the same one. ``losses`` counts trainings that ended with a device's power, ``reached`` is
    the first version at ``target``. ``wall_s`` is real time; nothing else in here depends on the machine.
    """

    name: str
    devices: int
    seed: int
    codec: str
    parameters: int
    versions: int
    updates: int
    accepted: int
    refused: Mapping[str, int]
    quarantined: int
    devices_heard: int
    accuracy: float | None
    accuracy_source: str
    metrics: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    payload_bytes: int
    virtual_s: float
    state_hash: str
    trainings: int
    encoded: int
    losses: int
    groups_of: str = ""
    by_group: Mapping[str, float] = field(default_factory=dict)
    target: float | None = None
    reached: VersionRow | None = None
    history: tuple[VersionRow, ...] = field(default=(), repr=False)
    wall_s: float = field(default=0.0, compare=False)

    @property
    def loss(self) -> float | None:
        """Mean loss of the newest version that was measured."""
        return next((row.loss for row in reversed(self.history) if row.loss is not None), None)

    @property
    def worst_group(self) -> float | None:
        """Accuracy on the group that is served worst."""
        return min(self.by_group.values(), default=None)

    @property
    def updates_per_s(self) -> float:
        """Accepted updates per second of real time."""
        return self.accepted / self.wall_s if self.wall_s else math.nan

    @property
    def float32_ratio(self) -> float:
        """How many times smaller the payloads are than float32 would be."""
        return 4.0 * self.parameters * self.encoded / self.payload_bytes if self.payload_bytes else math.nan

    def to_body(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self) | {
            "loss": self.loss,
            "worst_group": self.worst_group,
            "updates_per_s": round(self.updates_per_s, 1) if self.wall_s else None,
            "float32_ratio": round(self.float32_ratio, 2) if self.payload_bytes else None,
        }
