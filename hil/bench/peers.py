"""``python -m hil.bench.peers``: simulated updates per second of Flower's simulation engine, of a plain loop
of NumPy and of virtual fleets, on the same work in the same run.

The work is that of ``hil.bench.plain_sgd``: the same model, samples and steps everywhere. Each way has a
process of its own, and they take turns; what counts is the time after the first round, when everything is
warm. Flower needs an environment of its own: ``make bench-peers``.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fl_protocol.errors import LichenError, RuntimeUnavailable
from hil.bench.plain_sgd import averaging, score
from hil.bench.small_fleet import small_fleet
from hil.simulate.fleet import VirtualFleet

__all__ = ["Marks", "main", "peers"]

DEVICES = 1000
VERSIONS = 4
RUNS = 3
LONGEST_S = 900.0
"""Of one run; Flower's takes a minute or two."""
SAME = 0.02
"""By how much accuracies may differ after the same work: by rounding and, in a fleet, by one bit's noise."""
WAYS = ("loop", "numpy", "stacked", "flower")


class Marks:
    """When each version was there: seconds of the wall clock, and of CPU in all processes that took part."""

    def __init__(self, cpu: Callable[[], float] = time.process_time) -> None:
        self._cpu = cpu
        self._marks = [self._now()]

    def __len__(self) -> int:
        return len(self._marks)

    def note(self) -> None:
        """A version is there."""
        self._marks.append(self._now())

    def figures(self, devices: int) -> dict[str, float]:
        """Updates per second after the first version, and how long that one took."""
        (begun, _), (first, first_cpu), *_, (last, last_cpu) = self._marks
        updates = devices * (len(self._marks) - 2)
        return {
            "updates_per_s": round(updates / (last - first), 1),
            "updates_per_cpu_s": round(updates / (last_cpu - first_cpu), 1),
            "first_version_s": round(first - begun, 2),
        }

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), self._cpu()


def peers(*, devices: int = DEVICES, versions: int = VERSIONS, runs: int = RUNS) -> dict[str, Any]:
    """The figures of the section ``peers``: for each way the median of its runs, and all of them.

    Raises:
        RuntimeUnavailable: Flower is not installed here.
        LichenError: a run failed, its words are on stderr, or took too long; or a way learned something else,
            so that it did not do the same work.
    """
    try:
        found = {name: version(name) for name in ("flwr", "ray", "numpy")}
    except PackageNotFoundError as error:
        raise RuntimeUnavailable(
            f"the bench peers: no package {error.name} in this environment", hint="make bench-peers"
        ) from error
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way in WAYS:
            rows[way].append(_run(way, devices, versions))
    ways = [_median(way, rows[way]) for way in WAYS]
    if any(abs(row["accuracy"] - ways[0]["accuracy"]) > SAME for row in ways):
        said = ", ".join(f"{row['way']} {row['accuracy']:.4f}" for row in ways)
        raise LichenError(
            f"not the same work was done, as accuracies differ by more than {SAME}: {said}",
            hint="a run of more --devices or --versions differs less",
        )
    return {
        "devices": devices,
        "versions": versions,
        "cores": os.cpu_count(),
        "packages": {**found, "python": platform.python_version()},
        "ways": ways,
    }


def _run(way: str, devices: int, versions: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "hil.bench.peers", "--run", way, str(devices), str(versions)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            raise LichenError(
                f"a run of {way} takes longer than {LONGEST_S:.0f} s",
                hint="is the machine busy? fewer --devices, or --versions",
            ) from None
        finally:  # Ray's servers outlive a run that fails
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise LichenError(f"a run of {way} ended with {process.returncode}", hint="see what it said above")
    figures: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return figures


def _median(way: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"way": way, **middle, "runs": [row["updates_per_s"] for row in rows]}


def _loop(devices: int, versions: int) -> dict[str, Any]:
    rounds = averaging(devices, versions)
    weights = next(rounds)
    marks = Marks()
    for newest in rounds:
        marks.note()
        weights = newest
    return {**marks.figures(devices), "accuracy": round(score(weights), 4)}


def _fleet(way: str, devices: int, versions: int) -> dict[str, Any]:
    marks = Marks()

    def note(fleet: VirtualFleet) -> None:
        if len(marks) <= fleet.coordinator.version.number:
            marks.note()

    result = small_fleet(way, devices, versions, progress=note)
    return {**marks.figures(devices), "accuracy": round(result.accuracy or 0.0, 4)}


def _flower(devices: int, versions: int) -> dict[str, Any]:
    from hil.bench.flower_fleet import run

    return run(devices, versions)


def main(words: list[str] | None = None) -> int:
    """Print the figures; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hil.bench.peers", description=__doc__)
    parser.add_argument("--devices", type=int, default=DEVICES)
    parser.add_argument(
        "--versions", type=int, default=VERSIONS, help="rounds, the first of which is not counted"
    )
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--run", nargs=3, metavar=("WAY", "DEVICES", "VERSIONS"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.run:
        ways: Mapping[str, Callable[[int, int], dict[str, Any]]] = {
            "loop": _loop,
            "numpy": lambda devices, versions: _fleet("numpy", devices, versions),
            "stacked": lambda devices, versions: _fleet("stacked", devices, versions),
            "flower": _flower,
        }
        way, devices, versions = options.run
        sys.stdout.write(json.dumps(ways[way](int(devices), int(versions))) + "\n")
        return 0
    try:
        figures = peers(devices=options.devices, versions=options.versions, runs=options.runs)
    except LichenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
