"""How fast a coordinator takes updates, and whether its memory grows: many devices, small real updates.

Beside it, in the same run and over the same connections, the same messages go to an empty subscriber: what
the broker itself delivers, to a bare socket and to an ordinary client. Once before and once after, as the
machine is not the same from minute to minute.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fl_io.broker_address import BrokerAddress
from hil.load.flood import Flood
from hil.local_fleet import FleetOptions, LocalFleet
from models.runtime import TrainingArtifact

__all__ = ["ingest"]

BUFFER = 500
PUBLISH_EVERY_S = 0.25
"""So often the 4,000 devices of the flood may send anew."""
MOST_MESSAGES = 50_000
MIB = 1 << 20


def ingest(updates: int) -> dict[str, Any]:
    """Send ``updates`` updates; accepted updates per second beside the broker's own rate, and the slope of
    the coordinator's RSS over them in KiB per 1,000 updates. CPU is in microseconds per update.

    Raises:
        LichenError: nothing happened for 30 s; an update was refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = FleetOptions(
            devices=1,
            versions=1_000_000,
            settings={"buffer": {"size": BUFFER}, "publish": {"every_s": PUBLISH_EVERY_S}},
        )
        fleet = LocalFleet(Path(folder) / "fleet", options)
        try:
            fleet.prepare()
            fleet.coordinator.start()
            return asyncio.run(_measure(fleet, updates))
        finally:
            fleet.stop()


async def _measure(fleet: LocalFleet, updates: int) -> dict[str, Any]:
    layout = TrainingArtifact.open(fleet.folder / "artifact").layout
    address = BrokerAddress.parse(fleet.broker_url)
    coordinator = psutil.Process(fleet.coordinator.pid)
    broker = psutil.Process(fleet.embedded.pid) if fleet.embedded is not None else None
    messages = min(updates, MOST_MESSAGES)
    samples: list[tuple[int, int]] = []

    def watch(receipts: int) -> None:
        if receipts // 1000 > len(samples):
            samples.append((receipts, coordinator.memory_info().rss))

    async with Flood(address, fleet.options.name, layout, fleet.options.codec) as flood:
        before = [await flood.messages(messages, ordinary=ordinary) for ordinary in (False, True)]
        spent = _cpu_s(coordinator), _cpu_s(broker)
        rate = await flood.updates(updates, watch)
        spent = _cpu_s(coordinator) - spent[0], _cpu_s(broker) - spent[1]
        after = [await flood.messages(messages, ordinary=ordinary) for ordinary in (False, True)]
    bare, ordinary = ((one + two) / 2 for one, two in zip(before, after, strict=True))
    counts, sizes = np.array(samples, dtype=np.float64).T
    steady = counts >= 0.2 * updates
    slope, _ = np.polyfit(counts[steady], sizes[steady] / 1024, 1)
    return {
        "updates": updates,
        "accepted_per_s": round(rate),
        "broker_per_s": round(bare),
        "share": round(rate / bare, 2),
        "ordinary_per_s": round(ordinary),
        "share_of_ordinary": round(rate / ordinary, 2),
        "coordinator_cpu_us": round(spent[0] / updates * 1e6),
        "broker_cpu_us": round(spent[1] / updates * 1e6),
        "rss_first_mib": round(sizes[0] / MIB, 1),
        "rss_last_mib": round(sizes[-1] / MIB, 1),
        "slope_kib_per_1000": round(float(slope) * 1000, 2),
        "broker": fleet.broker_name,
    }


def _cpu_s(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)
