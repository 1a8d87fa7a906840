"""The figures of a finished demo: read from the journal, the ledgers and the sockets' counters."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from broker_coordinator.audit import audit
from broker_coordinator.sqlite_store import SqliteStore
from fl_protocol.codec import codec_for
from fl_protocol.update import UpdateHeader
from hil.demo.course import Moment
from hil.local_fleet import LocalFleet
from models.runtime.artifact import TrainingArtifact

__all__ = ["DeviceShare", "Figures", "VersionPoint", "collect"]

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPoint:
    """One version: ``accuracy`` of its published weights on the coordinator's held-out file, all MQTT bytes
    that devices had sent when it was first seen, and the mean staleness of its updates."""

    version: int
    accuracy: float | None
    device_accuracy: float | None
    bytes_up: int
    updates: int
    staleness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """What one device contributed."""

    device: str
    updates: int
    examples: int
    bytes_up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All that the report shows. ``summary`` is the object that ``--json`` prints."""

    summary: dict[str, Any]
    versions: tuple[VersionPoint, ...]
    devices: tuple[DeviceShare, ...]
    staleness: dict[int, int]
    """Updates by staleness (versions committed since their base; fresh is 0)."""

    def to_body(self) -> dict[str, Any]:
        """What ``report.json`` holds."""
        return {
            **self.summary,
            "by_version": [asdict(point) for point in self.versions],
            "by_device": [asdict(share) for share in self.devices],
            "by_staleness": {str(key): count for key, count in sorted(self.staleness.items())},
        }


def collect(fleet: LocalFleet, moments: Sequence[Moment], seconds: float) -> Figures:
    """Read the books of a fleet whose processes have ended.

    Raises:
        StorageError: a store that cannot be read.
    """
    books = audit(fleet.state, fleet.agent_states)
    statuses = {device: fleet.agent_status(device) for device in fleet.agents}
    bytes_up = sum(int(status.get("bytes_sent") or 0) for status in statuses.values())
    layout = TrainingArtifact.open(fleet.folder / "artifact").layout
    raw_bytes = FLOAT32_BYTES * layout.size
    payload_bytes = codec_for(fleet.options.codec).size(layout)
    points, shares, staleness = _journal(fleet, moments, statuses)
    per_update = bytes_up / books.accepted if books.accepted and bytes_up else None
    summary = {
        "devices": len(fleet.agents),
        "versions": points[-1].version if points else 0,
        "accuracy": points[-1].accuracy if points else None,
        "updates_accepted": books.accepted,
        "updates_refused": books.refused,
        "bytes_up_total": bytes_up or None,
        "bytes_up_per_update": round(per_update, 1) if per_update else None,
        "float32_bytes_per_update": raw_bytes,
        "payload_bytes_per_update": payload_bytes,
        "ratio_payload": round(raw_bytes / payload_bytes, 2),
        "ratio_all": round(raw_bytes / per_update, 2) if per_update else None,
        "seconds": round(seconds, 2),
        "broker": fleet.broker_name,
        "runtime": fleet.options.runtime,
        "codec": fleet.options.codec,
        "partition": fleet.options.partition,
        "seed": fleet.options.seed,
        "parameters": layout.size,
        "lost": books.lost,
        "duplicated": books.duplicated,
        "balanced": books.balanced,
        "versions_replayed": books.versions_checked,
        "replay_ok": books.replay_ok,
    }
    return Figures(summary=summary, versions=points, devices=shares, staleness=staleness)


def _journal(
    fleet: LocalFleet, moments: Sequence[Moment], statuses: dict[str, dict[str, Any]]
) -> tuple[tuple[VersionPoint, ...], tuple[DeviceShare, ...], dict[int, int]]:
    store = SqliteStore.open(fleet.state, read_only=True)
    staleness: dict[int, int] = {}
    updates = dict.fromkeys(fleet.agents, 0)
    examples = dict.fromkeys(fleet.agents, 0)
    points = []
    try:
        for record in store.versions():
            folded = [(row.device, row.staleness, row.header) for row in store.folded_into(record.number)]
            for device, steps, header in folded:
                staleness[steps] = staleness.get(steps, 0) + 1
                updates[device] = updates.get(device, 0) + 1
                examples[device] = max(examples.get(device, 0), UpdateHeader.unpack(header)[0].num_examples)
            reports = store.device_evaluation(record.number).sums
            points.append(
                VersionPoint(
                    version=record.number,
                    accuracy=record.metrics.get("accuracy"),
                    device_accuracy=_ratio(reports.get("correct"), reports.get("count")),
                    bytes_up=_bytes_when(moments, record.number),
                    updates=len(folded),
                    staleness=sum(steps for _, steps, _ in folded) / max(len(folded), 1),
                )
            )
    finally:
        store.close()
    shares = tuple(
        DeviceShare(
            device=device,
            updates=updates[device],
            examples=examples[device],
            bytes_up=int(statuses[device].get("bytes_sent") or 0),
        )
        for device in fleet.agents
    )
    return tuple(points), shares, staleness


def _bytes_when(moments: Sequence[Moment], version: int) -> int:
    """Bytes sent at the first moment that showed ``version``; the last moment's where none did."""
    for moment in moments:
        if moment.version >= version:
            return moment.bytes_up
    return moments[-1].bytes_up if moments else 0


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
