"""Who trains now: everyone whom a hash draws (``open``), or those who are asked to, by leases.

Mean staleness is about (in flight) / K, and a full step at high staleness diverges; so a fleet larger
than a few buffers draws a share, or grants leases. ``auto`` asks nobody while the fleet is smaller than
that, and grants leases once it is not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from broker_coordinator.storage.records import Lease
from fl_protocol.version import VersionId

__all__ = ["LeaseSelection", "OpenSelection", "Roster", "RoundSelection", "Selection", "cohort", "over"]


class Roster(Protocol):
    """Who could train; the store is one."""

    def ready(self, version: VersionId, *, most: int, fair: bool) -> Sequence[str]:
        """See ``Store.ready``."""
        ...


class Selection(Protocol):
    """Decides whom to ask to train; holds no state."""

    def choose(
        self, version: VersionId, roster: Roster, leases: Sequence[Lease], arrived: int
    ) -> Sequence[str]:
        """The devices to grant a lease on ``version`` now.

        ``leases`` are those that are held, ``arrived`` counts the updates in the open version.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSelection:
    """The manifest says it all: devices draw by hash themselves, nobody is asked."""

    def choose(
        self, version: VersionId, roster: Roster, leases: Sequence[Lease], arrived: int
    ) -> Sequence[str]:
        """Nobody."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSelection:
    """At most ``in_flight`` leases at a time; ``fair`` asks those first that had the fewest turns, else
    chance decides."""

    in_flight: int
    fair: bool = False

    def choose(
        self, version: VersionId, roster: Roster, leases: Sequence[Lease], arrived: int
    ) -> Sequence[str]:
        """Fill the free slots."""
        free = self.in_flight - len(leases)
        return roster.ready(version, most=free, fair=self.fair) if free > 0 else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSelection:
    """A cohort of ``size`` for each version: a member that has answered is not replaced, one whose lease
    lapsed is. The leases of a round that is closed are void where what comes late is refused, and anybody may
    be asked again; where it is accepted, stragglers keep theirs, and are not asked before it lapses.

    Bonawitz et al., Towards Federated Learning at Scale: System Design (2019), section 4.
    """

    size: int
    fair: bool = False

    def choose(
        self, version: VersionId, roster: Roster, leases: Sequence[Lease], arrived: int
    ) -> Sequence[str]:
        """Fill the cohort."""
        free = self.size - arrived - sum(lease.version == version for lease in leases)
        return roster.ready(version, most=free, fair=self.fair) if free > 0 else ()


def cohort(size: int, over_selection: float) -> int:
    """How many are asked so that ``size`` answer in time: 1.3 times ten are 13."""
    return math.ceil(round(size * over_selection, 6))


def over(
    leases: Iterable[Lease], now: float, longest_s: float, horizon: tuple[int, int] = (0, 0)
) -> Mapping[bytes, str]:
    """Lease id and device of leases that are over: their time is, or an update of their version would be
    refused as stale, being below ``horizon`` (epoch, number). In rounds that refuse what is late, that is so
    for all of a round when it closes.

    One that would hold longer than any can was granted by the clock of an earlier boot: over too.
    """
    return {
        lease.lease_id: lease.device
        for lease in leases
        if not now < lease.deadline <= now + longest_s
        or (lease.version.epoch, lease.version.number) < horizon
    }
