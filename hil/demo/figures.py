"""The figures of a finished demo: read from the journal, the ledgers and the sockets' counters."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from broker_coordinator.books.audit import audit
from broker_coordinator.evaluation import Evaluation, caveat_of
from broker_coordinator.storage.records import RuntimeCounts
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.codec import codec_for
from fl_protocol.update import UpdateHeader
from hil.demo.course import Moment
from hil.local_fleet import LocalFleet
from hil.workload import headline
from models.runtime.artifact import TrainingArtifact

__all__ = ["DeviceShare", "Figures", "VersionPoint", "collect"]

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPoint:
    """One version: ``metrics`` of its published weights on the coordinator's held-out file (means, empty
    where it was not measured) and ``device_metrics`` on the devices' own, all MQTT bytes that devices had
    sent when it was first seen, and the mean staleness of its updates."""

    version: int
    metrics: Mapping[str, float]
    device_metrics: Mapping[str, float]
    bytes_up: int
    updates: int
    staleness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """What one device contributed."""

    device: str
    runtime: str
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
    artifact = TrainingArtifact.open(fleet.folder / "artifact")
    manifest = artifact.manifest
    layout = manifest.layout
    raw_bytes = FLOAT32_BYTES * layout.size
    payload_bytes = codec_for(fleet.options.codec).largest(layout)
    journal = _journal(fleet, moments, statuses)
    newest = journal.versions[-1] if journal.versions else None
    per_update = bytes_up / books.accepted if books.accepted and bytes_up else None
    summary = {
        "devices": len(fleet.agents),
        "versions": newest.version if newest else 0,
        "model": manifest.name,
        "metric": headline(manifest.metrics),
        "accuracy": newest.metrics.get("accuracy") if newest else None,
        "metrics": dict(newest.metrics) if newest else {},
        "held_out_examples": journal.held_out,
        "caveat": caveat_of(artifact) if journal.held_out else "",
        "reported": journal.reported,
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
        "runtimes": journal.runtimes,
        "runtimes_absent": dict(fleet.lineup.absent),
        "codec": fleet.options.codec,
        "partition": fleet.partition,
        "seed": fleet.options.seed,
        "parameters": layout.size,
        "lost": books.lost,
        "duplicated": books.duplicated,
        "balanced": books.balanced,
        "versions_replayed": books.versions_checked,
        "replay_ok": books.replay_ok,
    }
    return Figures(
        summary=summary, versions=journal.versions, devices=journal.devices, staleness=journal.staleness
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Journal:
    """What the coordinator's store tells; ``held_out`` counts the rows of its held-out file, ``reported`` is
    what devices said of the newest version that any of them evaluated: empty where none did."""

    versions: tuple[VersionPoint, ...]
    devices: tuple[DeviceShare, ...]
    staleness: dict[int, int]
    runtimes: dict[str, dict[str, int]]
    held_out: int
    reported: dict[str, Any]


def _journal(
    fleet: LocalFleet, moments: Sequence[Moment], statuses: Mapping[str, Mapping[str, Any]]
) -> _Journal:
    store = SqliteStore.open(fleet.state, read_only=True)
    staleness: dict[int, int] = {}
    updates = dict.fromkeys(fleet.agents, 0)
    examples = dict.fromkeys(fleet.agents, 0)
    points = []
    held_out = 0
    newest: dict[str, Any] = {}
    try:
        for record in store.versions():
            folded = [(row.device, row.staleness, row.header) for row in store.folded_into(record.number)]
            for device, steps, header in folded:
                staleness[steps] = staleness.get(steps, 0) + 1
                updates[device] = updates.get(device, 0) + 1
                examples[device] = max(examples.get(device, 0), UpdateHeader.unpack(header)[0].num_examples)
            measured = Evaluation.from_metrics(record.metrics)
            reported = Evaluation.of_devices(store.device_evaluation(record.number))
            held_out = measured.examples if measured else held_out
            newest = _reported(record.number, reported) if reported else newest
            points.append(
                VersionPoint(
                    version=record.number,
                    metrics=measured.means if measured else {},
                    device_metrics=reported.means if reported else {},
                    bytes_up=_bytes_when(moments, record.number),
                    updates=len(folded),
                    staleness=sum(steps for _, steps, _ in folded) / max(len(folded), 1),
                )
            )
        trained_by = {record.device: record.runtime for record in store.devices()}
        counts = store.runtimes()
    finally:
        store.close()
    trained_by |= {device: seat.runtime for device, seat in fleet.lineup.seats.items()}
    return _Journal(
        versions=tuple(points),
        devices=tuple(
            DeviceShare(
                device=device,
                runtime=trained_by.get(device, ""),
                updates=updates[device],
                examples=examples[device],
                bytes_up=int(statuses[device].get("bytes_sent") or 0),
            )
            for device in fleet.agents
        ),
        staleness=staleness,
        runtimes=_by_runtime([trained_by.get(device, "") for device in fleet.agents], counts),
        held_out=held_out,
        reported=newest,
    )


def _reported(version: int, said: Evaluation) -> dict[str, Any]:
    return {"version": version, "devices": said.devices, "examples": said.examples, "metrics": said.means}


def _by_runtime(devices: Sequence[str], counts: Mapping[str, RuntimeCounts]) -> dict[str, dict[str, int]]:
    """Devices and updates of each runtime; one that has devices and no update is there too."""
    names = [*dict.fromkeys(devices), *(name for name in counts if name not in devices)]
    none = RuntimeCounts()
    return {
        name: {
            "devices": devices.count(name),
            "accepted": counts.get(name, none).accepted,
            "folded": counts.get(name, none).folded,
        }
        for name in names
    }


def _bytes_when(moments: Sequence[Moment], version: int) -> int:
    """Bytes sent at the first moment that showed ``version``; the last moment's where none did."""
    for moment in moments:
        if moment.version >= version:
            return moment.bytes_up
    return moments[-1].bytes_up if moments else 0
