"""What an agent costs its device: memory at rest and at the peak of training, and CPU per participation."""

import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from fl_protocol.errors import LichenError
from hil.local_fleet import FleetOptions, LocalFleet

__all__ = ["footprint"]

REST_S = 60.0
PEAK_TIMEOUT_S = 60.0
SAMPLING_S = 0.01
MIB = 1 << 20


def footprint(runtime: str, *, rest_s: float = REST_S) -> dict[str, Any]:
    """One agent of a real fleet: RSS in MiB of its supervisor ``rest_s`` after its first update, connected,
    and of all its processes at the peak of that training.

    Raises:
        LichenError: the agent made no update within 60 s.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = FleetOptions(
            devices=1,
            versions=1_000_000,
            runtime=runtime,
            # One update, and then rest: the buffer never closes again.
            settings={"buffer": {"size": 1_000, "flush_after_s": 0.0}},
            agent_settings={"worker": {"linger_s": 2.0}},
        )
        fleet = LocalFleet(Path(folder) / "fleet", options)
        try:
            fleet.prepare()
            fleet.start()
            peak, cpu_s = _until_first_update(fleet)
            supervisor = psutil.Process(fleet.agents["dev-00"].pid)
            time.sleep(rest_s)
            return {
                "runtime": runtime,
                "rest_s": rest_s,
                "supervisor_mib": round(supervisor.memory_info().rss / MIB, 1),
                "processes_at_rest": 1 + len(supervisor.children(recursive=True)),
                "peak_mib": round(peak / MIB, 1),
                "cpu_s": round(cpu_s, 2),
                "training_cpu_s": fleet.agent_status("dev-00").get("training_cpu_s"),
            }
        finally:
            fleet.stop()


def _until_first_update(fleet: LocalFleet) -> tuple[int, float]:
    """Sample until the first receipt: the greatest sum of RSS, and the CPU seconds of all processes."""
    supervisor = psutil.Process(fleet.agents["dev-00"].pid)
    peak = 0
    cpu: dict[int, float] = {}
    deadline = time.monotonic() + PEAK_TIMEOUT_S
    while time.monotonic() < deadline:
        total = 0
        for process in [supervisor, *supervisor.children(recursive=True)]:
            try:
                total += process.memory_info().rss
                times = process.cpu_times()
                cpu[process.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        if (fleet.agent_status("dev-00").get("updates") or {}).get("done"):
            return peak, sum(cpu.values())
        time.sleep(SAMPLING_S)
    raise LichenError(f"no update within {PEAK_TIMEOUT_S:.0f} s", hint=fleet.agents["dev-00"].last_words())
