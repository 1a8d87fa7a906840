"""Leases, kept: granted to whom the selection chooses, said by signed commands, ended by time or an update.

One ends too when its version falls below the horizon, for no update of it would be taken then. A lease only
limits how many train at a time: the late update of one that expired is accepted like any.
"""

import secrets
from collections.abc import Callable

from broker_coordinator.selection import Selection, over
from broker_coordinator.storage.records import Lease
from broker_coordinator.storage.store import Store
from fl_protocol.clock import Clock
from fl_protocol.command import Command
from fl_protocol.signed import COMMAND_CONTEXT, Sign, seal
from fl_protocol.topics import FleetTopics
from fl_protocol.update import LEASE_BYTES
from fl_protocol.version import VersionId

__all__ = ["Commands", "Leasing"]


class Commands:
    """Numbers and signs commands; whoever asks for one sends it after the commit of its number."""

    def __init__(self, topics: FleetTopics, store: Store, sign: Sign) -> None:
        self._topics = topics
        self._store = store
        self._sign = sign

    def restate(self, device: str, *, evidence: bool) -> tuple[str, bytes]:
        """Ask for the birth message, and for the newest manifest the device has verified."""
        return self._sealed(
            Command(kind="restate", device=device, term=self._term, sequence=self._next, evidence=evidence)
        )

    def train(self, lease: Lease, deadline_s: float) -> tuple[str, bytes]:
        """Ask a device to train."""
        return self._sealed(
            Command(
                kind="train",
                device=lease.device,
                term=self._term,
                sequence=self._next,
                lease=lease.lease_id,
                version=lease.version,
                deadline_s=deadline_s,
            )
        )

    @property
    def _term(self) -> int:
        return self._store.office().term

    @property
    def _next(self) -> int:
        return self._store.next_command_sequence()

    def _sealed(self, command: Command) -> tuple[str, bytes]:
        return self._topics.command(command.device), seal(COMMAND_CONTEXT, command.pack(), self._sign)


class Leasing:
    """Grants leases on the version that is out. ``dirty`` says that something has changed since."""

    def __init__(
        self,
        selection: Selection,
        *,
        store: Store,
        commands: Commands,
        send: Callable[[str, bytes], None],
        clock: Clock,
        lease_s: float,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._selection = selection
        self._store = store
        self._commands = commands
        self._send = send
        self._clock = clock
        self._lease_s = lease_s
        self._entropy = entropy
        self.dirty = True

    def work(self, version: VersionId, arrived: int) -> float | None:
        """End what is over, grant what is free; seconds until the next lease ends.

        Only for a version whose manifest says ``by_lease``; ``arrived`` counts the updates in the open one.
        """
        now = self._clock.monotonic()
        leases = self._store.leases()
        ended = over(leases, now, self._lease_s, self._store.office().horizon)
        if ended or self.dirty:
            self.dirty = False
            held = [lease for lease in leases if lease.lease_id not in ended]
            with self._store.transaction("coordinator.leases"):
                for lease_id in ended:
                    self._store.lapse_lease(lease_id)
                chosen = self._selection.choose(version, self._store, held, arrived)
                granted = [self._lease(device, version, now) for device in chosen]
                for lease in granted:
                    self._store.grant_lease(lease)
                messages = [self._commands.train(lease, self._lease_s) for lease in granted]
            for topic, payload in messages:
                self._send(topic, payload)
            leases = [*held, *granted]
        return min((lease.deadline - now for lease in leases), default=None)

    def came_online(self, device: str) -> None:
        """A device that holds a lease may have missed the command: say it again."""
        self.dirty = True
        now = self._clock.monotonic()
        for lease in self._store.leases():
            if lease.device == device and now < lease.deadline:
                self._send(*self._commands.train(lease, lease.deadline - now))

    def _lease(self, device: str, version: VersionId, now: float) -> Lease:
        lease_id = self._entropy(LEASE_BYTES)
        return Lease(lease_id=lease_id, device=device, version=version, deadline=now + self._lease_s)
