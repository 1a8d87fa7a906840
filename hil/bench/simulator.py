"""``python -m hil.bench.simulator``: how fast virtual fleets are, and how large, beside a loop of NumPy.

The work: a 64-32-10 MLP on the digits, 14 samples a device drawn with replacement, two steps of SGD, and
each device takes part in each version. The loop does the same training and averages, without agent, codec,
protocol or store. Every measurement has a process of its own; updates are counted per CPU second, from the
opened artifact to the last version; what Python and the imports took before is ``before_cpu_s``.

``resident_mib`` is all that the process holds when the last version is made: interpreter, libraries,
coordinator and broker too. ``bytes_per_device`` is what it grew by since the imports, over the number of
devices; at 1,000 of them more than half of that is what a single device would cost as well.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hil.bench.plain_sgd import averaging, score
from hil.bench.small_fleet import small_fleet
from hil.simulate.fleet import VirtualFleet

__all__ = ["main", "over_broker", "simulator"]

VERSIONS = 6
LONGEST_S = 3600.0
"""Of one run; the largest takes minutes."""
SIZES = (1_000, 10_000)
LARGEST = 100_000
RUNS = ("loop", "onnx", "numpy", "stacked")


def simulator(*, largest: int = 0) -> dict[str, Any]:
    """The figures of 1,000 devices in each way and over a mosquitto, of 10,000 stacked, and of ``largest``
    unless it is 0.

    Raises:
        ConfigError: there is no mosquitto to start.
        CalledProcessError: a run failed; its words are on stderr.
    """
    figures: dict[str, Any] = {"versions": VERSIONS}
    figures["runs"] = [_measured(way, SIZES[0], VERSIONS) for way in RUNS]
    figures["sizes"] = [_measured("stacked", size, 1) for size in (*SIZES, *((largest,) if largest else ()))]
    figures["over_broker"] = over_broker("auto")["runs"]
    return figures


def over_broker(url: str, *, count: int = SIZES[0]) -> dict[str, Any]:
    """The figures of ``count`` devices in memory and over the broker at ``url``, one after the other;
    ``auto`` starts a mosquitto for it.

    Raises:
        ConfigError: there is no mosquitto to start.
        CalledProcessError: a run failed; its words are on stderr.
    """
    with contextlib.ExitStack() as stack:
        if url == "auto":
            # With it comes asyncio, which a fleet in memory is not to be charged for.
            from broker_coordinator.embedded_broker import EmbeddedBroker

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lichen-")))
            url = stack.enter_context(EmbeddedBroker("mosquitto", 0, folder)).url
        runs = [
            _measured(way, count, VERSIONS, broker=broker)
            for way in ("numpy", "stacked")
            for broker in ("", url)
        ]
        return {"versions": VERSIONS, "runs": runs, "sizes": []}


def _measured(way: str, count: int, versions: int, *, broker: str = "") -> dict[str, Any]:
    command = [sys.executable, "-m", "hil.bench.simulator", "--run", way, str(count), str(versions)]
    command += ["--broker", broker] if broker else []
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment, timeout=LONGEST_S
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _fleet(way: str, count: int, versions: int, broker: str) -> dict[str, Any]:
    marks: list[tuple[float, float]] = []

    def note(fleet: VirtualFleet) -> None:
        if len(marks) <= fleet.coordinator.version.number:
            marks.append((time.process_time(), _rss_bytes()))

    before = _rss_bytes()
    started = time.process_time()
    result = small_fleet(way, count, versions, progress=note, broker=broker)
    cpu_s = time.process_time() - started
    later = marks[-1][0] - marks[1][0]
    return {
        "way": way,
        "devices": count,
        "accepted": result.accepted,
        "devices_heard": result.devices_heard,
        "per_cpu_s": round(result.accepted / cpu_s),
        "later_per_cpu_s": round((result.accepted - count) / later) if versions > 1 else None,
        "first_version_cpu_s": round(marks[1][0] - started, 2),
        "before_cpu_s": round(started, 2),
        "resident_mib": round(marks[-1][1] / 2**20),
        "bytes_per_device": round((marks[-1][1] - before) / count),
        "accuracy": round(result.accuracy or 0.0, 4),
        **({"broker": broker} if broker else {}),
        "per_wall_s": round(result.updates_per_s),
    }


def _loop(count: int, versions: int) -> dict[str, Any]:
    rounds = averaging(count, versions)
    weights = next(rounds)
    started = time.process_time()
    first = 0.0
    for newest in rounds:
        first = first or time.process_time() - started
        weights = newest
    cpu_s = time.process_time() - started
    return {
        "way": "loop",
        "devices": count,
        "accepted": count * versions,
        "devices_heard": count,
        "per_cpu_s": round(count * versions / cpu_s),
        "later_per_cpu_s": round(count * (versions - 1) / max(cpu_s - first, 1e-9)) if versions > 1 else None,
        "first_version_cpu_s": round(first, 2),
        "before_cpu_s": round(started, 2),
        "resident_mib": round(_rss_bytes() / 2**20),
        "bytes_per_device": None,
        "accuracy": round(score(weights), 4),
    }


def _rss_bytes() -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) * 1024.0


def main(words: list[str] | None = None) -> int:
    """Print the figures; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hil.bench.simulator", description=__doc__)
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--largest", action="store_true", help=f"{LARGEST:,} devices too: some minutes, 3 GB")
    parser.add_argument(
        "--broker",
        metavar="URL",
        default="",
        help="in place of the rest: over a real broker; auto: mosquitto",
    )
    parser.add_argument("--run", nargs=3, metavar=("WAY", "DEVICES", "VERSIONS"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.run:
        way, count, versions = options.run[0], int(options.run[1]), int(options.run[2])
        figures = _loop(count, versions) if way == "loop" else _fleet(way, count, versions, options.broker)
        sys.stdout.write(json.dumps(figures) + "\n")
        return 0
    if options.broker:
        figures = over_broker(options.broker)
    else:
        figures = simulator(largest=LARGEST if options.largest else 0)
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
        return 0
    for row in (*figures["runs"], *figures["sizes"]):
        sys.stdout.write("  ".join(f"{key} {value}" for key, value in row.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
