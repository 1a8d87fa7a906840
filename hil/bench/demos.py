"""Whole demos, as a newcomer runs them: accuracy, time and bytes over many seeds, models and codecs."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from fl_protocol.errors import LichenError

__all__ = ["TRAFFIC_CASES", "run_demo", "seeds", "traffic"]

TIMEOUT_S = 300.0
TRAFFIC_CASES: Sequence[tuple[str, Sequence[str]]] = (
    ("2,410 parameters, eden(bits=1)", ("--codec", "eden(bits=1)")),
    ("2,410 parameters, int8", ("--codec", "int8")),
    ("2,410 parameters, float32", ("--codec", "float32")),
    ("76,810 parameters, eden(bits=1)", ("--hidden", "1024", "--codec", "eden(bits=1)")),
    ("76,810 parameters, eden(bits=1, keep=0.25)", ("--hidden", "1024", "--codec", "eden(bits=1,keep=0.25)")),
)


def run_demo(*options: str) -> dict[str, Any]:
    """Run ``lichen demo --json`` with ``options``; the object it prints.

    Raises:
        LichenError: it failed, with what it said, or ran longer than 300 s.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lichen", "demo", "--json", "--out", f"{folder}/demo", *options]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise LichenError(f"a demo ran longer than {TIMEOUT_S:.0f} s: {' '.join(options)}") from None
    if finished.returncode:
        raise LichenError(f"a demo failed: {' '.join(options)}\n{finished.stderr}")
    figures: dict[str, Any] = json.loads(finished.stdout)
    return figures


def seeds(count: int) -> dict[str, Any]:
    """Demos at their defaults with seeds 1 to ``count``."""
    runs = [run_demo("--seed", str(seed)) for seed in range(1, count + 1)]
    return {
        "seeds": count,
        **_spread("accuracy", [run["accuracy"] for run in runs]),
        **_spread("seconds", [run["seconds"] for run in runs]),
        **_spread("bytes_up_per_update", [run["bytes_up_per_update"] for run in runs]),
        "ratio_all": statistics.median(run["ratio_all"] for run in runs),
        "ratio_payload": runs[0]["ratio_payload"],
        "lost": sum(run["lost"] for run in runs),
        "duplicated": sum(run["duplicated"] for run in runs),
        "broker": runs[0]["broker"],
    }


def traffic() -> Iterator[dict[str, Any]]:
    """One demo for each of ``TRAFFIC_CASES``: all MQTT bytes a device sends per update."""
    for name, options in TRAFFIC_CASES:
        run = run_demo("--seed", "1", *options)
        yield {
            "case": name,
            "float32": run["float32_bytes_per_update"],
            "payload": run["payload_bytes_per_update"],
            "all": run["bytes_up_per_update"],
            "ratio_payload": run["ratio_payload"],
            "ratio_all": run["ratio_all"],
            "accuracy": run["accuracy"],
        }


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_median": statistics.median(values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }
