"""Who trains now: everyone whom a hash draws (``open``), or those who are asked to (``train``).

Mean staleness is about (in flight) / K, and a full step at high staleness diverges; so a fleet larger
than a few buffers draws a share, or grants leases.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker_coordinator.records import DeviceRecord, Lease
from fl_protocol.task import Pacing
from fl_protocol.version import VersionId

__all__ = ["LeaseSelection", "OpenSelection", "Selection", "expired", "selection_for"]


class Selection(Protocol):
    """Decides whom to ask to train; holds no state."""

    @property
    def pacing(self) -> Pacing:
        """What the task manifest says of it."""
        ...

    def choose(
        self, version: VersionId, devices: Iterable[DeviceRecord], leases: Sequence[Lease]
    ) -> Sequence[str]:
        """The devices to grant a lease on ``version`` now; ``leases`` are those that are held."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSelection:
    """The manifest says it all: devices draw by hash themselves, nobody is asked."""

    pacing: Pacing

    def choose(
        self, version: VersionId, devices: Iterable[DeviceRecord], leases: Sequence[Lease]
    ) -> Sequence[str]:
        """Nobody."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSelection:
    """At most ``in_flight`` leases at a time, to devices on line that did not count for the version yet.

    Whom first, a hash decides, other for every version: no device waits for ever behind another.
    """

    pacing: Pacing
    in_flight: int

    def choose(
        self, version: VersionId, devices: Iterable[DeviceRecord], leases: Sequence[Lease]
    ) -> Sequence[str]:
        """Fill the free slots."""
        free = self.in_flight - len(leases)
        if free <= 0:
            return ()
        holders = {lease.device for lease in leases}
        ready = [
            record.device
            for record in devices
            if record.online
            and record.samples > 0
            and record.device not in holders
            and record.last_base != version.number
        ]
        return sorted(ready, key=lambda device: _draw(device, version))[:free]


def selection_for(pacing: Pacing, in_flight: int) -> Selection:
    """The selection that a pacing calls for; ``in_flight`` leases at most, where there are any."""
    if not pacing.by_lease:
        return OpenSelection(pacing=pacing)
    return LeaseSelection(pacing=pacing, in_flight=in_flight)


def _draw(device: str, version: VersionId) -> bytes:
    return hashlib.sha256(b"lease" + version.digest + device.encode()).digest()


def expired(leases: Iterable[Lease], now: float, longest_s: float) -> Mapping[bytes, str]:
    """Lease id and device of leases that are over.

    One that would hold longer than any can was granted by the clock of an earlier boot: over too.
    """
    return {lease.lease_id: lease.device for lease in leases if not now < lease.deadline <= now + longest_s}
