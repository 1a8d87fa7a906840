"""The store's verbs on devices, leases and the inventory, on sqlite."""

import hashlib
from collections.abc import Sequence
from typing import Any

from broker_coordinator.storage.records import DeviceRecord, DoubledDevice, InventoryRow, Lease, NewUpdate
from broker_coordinator.storage.sqlite_database import Database
from fl_protocol.presence import DevicePresence
from fl_protocol.version import VersionId

__all__ = ["SqliteFleet"]

_READY = (
    " FROM devices INDEXED BY {index} WHERE online = 1 AND samples > 0"
    " AND (last_base IS NULL OR last_base <> ?)"
    " AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.device = devices.device)"
)
_COLUMNS = (
    "device, incarnation, online, session, agent, runtimes, samples, idle_reason, accepted, refused,"
    " forgotten, bytes_up, last_base, last_seen, runtime"
)


class SqliteFleet:
    """See ``broker_coordinator.storage.store.Store``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def device_seen(self, device: str, presence: DevicePresence | None = None) -> None:
        """Note a sign of life."""
        with self._database.transaction():
            self._sign_of_life(device)
            if presence is None:
                return
            if not presence.online:
                # The will of an older session may come after the birth of the next one.
                self._database.change(
                    "UPDATE devices SET online = 0 WHERE device = ? AND session = ?",
                    (device, presence.session),
                )
                return
            self._database.change(
                "UPDATE devices SET incarnation = ?, online = 1, session = ?, agent = ?, runtimes = ?,"
                " samples = ?, idle_reason = ? WHERE device = ?",
                (
                    presence.incarnation,
                    presence.session,
                    presence.agent,
                    ",".join(presence.runtimes),
                    presence.samples,
                    presence.idle_reason,
                    device,
                ),
            )

    def count_update(
        self,
        device: str,
        *,
        accepted: bool,
        bytes_up: int,
        base: int | None = None,
        runtime: str | None = None,
        count: int = 1,
    ) -> None:
        """Add to a device's counts."""
        with self._database.transaction():
            self._sign_of_life(device)
            self._database.change(
                "UPDATE devices SET accepted = accepted + ?, refused = refused + ?, bytes_up = bytes_up + ?,"
                " last_base = COALESCE(?, last_base), runtime = COALESCE(?, runtime), turns = turns + ?"
                " WHERE device = ?",
                (
                    count if accepted else 0,
                    0 if accepted else count,
                    bytes_up,
                    base,
                    runtime,
                    count if accepted else 0,
                    device,
                ),
            )

    def count_accepted(self, updates: Sequence[NewUpdate]) -> None:
        """Add to the counts of their devices, each a sign of life."""
        with self._database.transaction():
            ((life,),) = self._database.rows("SELECT life FROM office")
            self._database.change("UPDATE office SET life = life + ?", (len(updates),))
            self._database.change_all(
                "INSERT INTO devices (device, last_seen, accepted, turns, bytes_up, last_base, runtime, draw)"
                " VALUES (?, ?, 1, 1, ?, ?, ?, ?) ON CONFLICT (device) DO UPDATE SET"
                " last_seen = excluded.last_seen, accepted = accepted + 1, turns = turns + 1,"
                " bytes_up = bytes_up + excluded.bytes_up, last_base = excluded.last_base,"
                " runtime = excluded.runtime",
                [
                    (
                        update.device,
                        seen,
                        update.size,
                        update.base.number,
                        update.runtime,
                        _drawn(update.device.encode()),
                    )
                    for seen, update in enumerate(updates, life + 1)
                ],
            )

    def device(self, device: str) -> DeviceRecord | None:
        """One device."""
        row = self._database.row(f"SELECT {_COLUMNS} FROM devices WHERE device = ?", (device,))
        return _device(row) if row is not None else None

    def devices(self) -> Sequence[DeviceRecord]:
        """All devices."""
        return [
            _device(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM devices ORDER BY device")
        ]

    def ready(self, version: VersionId, *, most: int, fair: bool) -> Sequence[str]:
        """Whom to ask next."""
        if most <= 0:
            return []
        if fair:
            query = "SELECT device" + _READY.format(index="devices_fair") + " ORDER BY turns, draw LIMIT ?"
            return [device for (device,) in self._database.rows(query, (version.number, most))]
        point = _drawn(version.digest)
        query = "SELECT device" + _READY.format(index="devices_ready")
        above = f"{query} AND draw >= ? ORDER BY draw LIMIT ?"
        chosen = [device for (device,) in self._database.rows(above, (version.number, point, most))]
        if len(chosen) < most:
            below = f"{query} AND draw < ? ORDER BY draw LIMIT ?"
            rows = self._database.rows(below, (version.number, point, most - len(chosen)))
            chosen += [device for (device,) in rows]
        return chosen

    def count_ready(self, *, most: int) -> int:
        """Devices that could train."""
        ((count,),) = self._database.rows(
            "SELECT COUNT(*) FROM (SELECT 1 FROM devices INDEXED BY devices_ready"
            " WHERE online = 1 AND samples > 0 LIMIT ?)",
            (most,),
        )
        return int(count)

    def note_double(self, device: str, *, how: str, seen_at: float) -> None:
        """Count a doubled identity."""
        self._database.change(
            "INSERT INTO doubles VALUES (?, 1, ?, ?) ON CONFLICT (device)"
            " DO UPDATE SET count = count + 1, how = excluded.how, seen_at = excluded.seen_at",
            (device, how, seen_at),
        )

    def doubles(self) -> Sequence[DoubledDevice]:
        """All doubled identities."""
        rows = self._database.rows("SELECT device, count, how, seen_at FROM doubles ORDER BY device")
        return [
            DoubledDevice(device=device, count=count, how=how, seen_at=seen_at)
            for device, count, how, seen_at in rows
        ]

    def grant_lease(self, lease: Lease) -> None:
        """Record a lease."""
        version = lease.version
        with self._database.transaction():
            self._database.change(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?)",
                (lease.lease_id, lease.device, version.epoch, version.number, version.digest, lease.deadline),
            )
            self._database.change(
                "UPDATE devices SET draw = ? WHERE device = ?",
                (_drawn(lease.lease_id + lease.device.encode()), lease.device),
            )

    def end_lease(self, lease_id: bytes) -> bool:
        """Forget a lease."""
        changed, _ = self._database.change("DELETE FROM leases WHERE lease_id = ?", (lease_id,))
        return changed > 0

    def lapse_lease(self, lease_id: bytes) -> bool:
        """End a lease unanswered."""
        with self._database.transaction():
            self._database.change(
                "UPDATE devices SET turns = turns + 1"
                " WHERE device = (SELECT device FROM leases WHERE lease_id = ?)",
                (lease_id,),
            )
            return self.end_lease(lease_id)

    def leases(self) -> Sequence[Lease]:
        """All leases."""
        rows = self._database.rows(
            "SELECT lease_id, device, epoch, number, digest, deadline FROM leases ORDER BY deadline, lease_id"
        )
        return [
            Lease(
                lease_id=lease_id,
                device=device,
                version=VersionId(epoch=epoch, number=number, digest=digest),
                deadline=deadline,
            )
            for lease_id, device, epoch, number, digest, deadline in rows
        ]

    def inventory(self) -> Sequence[InventoryRow]:
        """Our retained topics."""
        rows = self._database.rows("SELECT topic, sha256, first_version FROM inventory ORDER BY topic")
        return [
            InventoryRow(topic=topic, sha256=sha256, first_version=first) for topic, sha256, first in rows
        ]

    def replace_inventory(self, rows: Sequence[InventoryRow]) -> None:
        """Replace the inventory."""
        with self._database.transaction("coordinator.inventory"):
            self._database.change("DELETE FROM inventory")
            for row in rows:
                self._database.change(
                    "INSERT INTO inventory VALUES (?, ?, ?)", (row.topic, row.sha256, row.first_version)
                )

    def _sign_of_life(self, device: str) -> None:
        self._database.change("UPDATE office SET life = life + 1")
        self._database.change(
            "INSERT INTO devices (device, last_seen, draw) VALUES (?, (SELECT life FROM office), ?)"
            " ON CONFLICT (device) DO UPDATE SET last_seen = excluded.last_seen",
            (device, _drawn(device.encode())),
        )


def _drawn(seed: bytes) -> int:
    """63 bits that depend on ``seed`` alone."""
    return int.from_bytes(hashlib.sha256(b"draw" + seed).digest()[:8], "big") >> 1


def _device(row: tuple[Any, ...]) -> DeviceRecord:
    (device, incarnation, online, session, agent, runtimes, samples, idle_reason, *counts) = row
    (accepted, refused, forgotten, bytes_up, last_base, last_seen, runtime) = counts
    return DeviceRecord(
        device=device,
        incarnation=incarnation,
        online=bool(online),
        session=session,
        agent=agent,
        runtimes=tuple(filter(None, runtimes.split(","))),
        samples=samples,
        idle_reason=idle_reason,
        accepted=accepted,
        refused=refused,
        forgotten=forgotten,
        bytes_up=bytes_up,
        last_base=last_base,
        last_seen=last_seen,
        runtime=runtime,
    )
