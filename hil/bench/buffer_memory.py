"""``python -m hil.bench.buffer_memory``: what a large buffer costs a coordinator.

Each K has a process of its own, in which a coordinator on the in-memory broker takes as many updates of the
same model; what is compared is the processes' peak of resident memory.
"""

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from broker_coordinator.configuration import BufferTable, FleetConfiguration
from broker_coordinator.coordinator import Coordinator
from broker_coordinator.keys import open_key
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.clock import ManualClock
from fl_protocol.codec import codec_for, codec_seed
from fl_protocol.errors import LichenError
from fl_protocol.loopback import LoopbackBroker
from fl_protocol.topics import FleetTopics
from fl_protocol.update import UpdateHeader
from hil.bench.markdown_table import table_rows
from models.runtime import TrainingArtifact
from models.zoo.mlp import digits_artifact

__all__ = ["buffer_memory", "buffer_memory_section", "main"]

SIZES = (10, 1000)
UPDATES = 3000
HIDDEN = 1340
"""100,510 parameters."""
RUNS = 3
LONGEST_S = 900.0
"""Of one run; it takes a minute or less."""
_SECTION = """
## Memory of a large buffer

`make bench ARGS="--only buffer_memory"`: the peak of a coordinator's resident memory over
{updates:,} updates of {parameters:,} parameters at one bit, in versions of K; medians of {runs} alternating
runs.

| K | peak, MiB | of each run |
| --- | --- | --- |
{rows}

They differ by {difference_mib} MiB. Bound: < 5 MB.
"""


def buffer_memory(runs: int = RUNS) -> dict[str, Any]:
    """Peak RSS in MiB for each K in alternating runs, and by how much their medians differ.

    Raises:
        LichenError: a run failed, its words are on stderr, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        artifact = digits_artifact(path, hidden=HIDDEN)
        peaks: dict[int, list[float]] = {size: [] for size in SIZES}
        for run in range(runs):
            for size in SIZES:
                peaks[size].append(round(_peak_mib(path, Path(folder) / f"state{size}-{run}", size), 1))
        small, large = (statistics.median(peaks[size]) for size in SIZES)
        return {
            "parameters": artifact.layout.size,
            "updates": UPDATES,
            "peaks_mib": {f"{size}": peaks[size] for size in SIZES},
            "difference_mib": round(large - small, 1),
        }


def buffer_memory_section(figures: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    peaks: Mapping[str, list[float]] = figures["peaks_mib"]
    rows = table_rows(
        [f"{int(size):,}", f"{statistics.median(runs):.1f}", ", ".join(f"{run:.1f}" for run in runs)]
        for size, runs in sorted(peaks.items(), key=lambda pair: int(pair[0]))
    )
    runs = len(next(iter(peaks.values())))
    return _SECTION.format(
        updates=figures["updates"],
        parameters=figures["parameters"],
        difference_mib=figures["difference_mib"],
        runs=runs,
        rows=rows,
    )


def _peak_mib(artifact: Path, state: Path, size: int) -> float:
    command = [sys.executable, "-m", "hil.bench.buffer_memory", str(artifact), str(state), f"{size}"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        raise LichenError(f"K = {size} takes longer than {LONGEST_S:.0f} s") from None
    if done.returncode:
        raise LichenError(f"K = {size} ended with {done.returncode}", hint="see what it said above")
    return float(done.stdout)


def _serve(path: Path, state: Path, size: int) -> float:
    """Take ``UPDATES`` updates in versions of ``size``; the peak."""
    artifact = TrainingArtifact.open(path)
    layout, clock = artifact.layout, ManualClock(1000.0)
    broker = LoopbackBroker(clock)
    state.mkdir()
    configuration = FleetConfiguration(
        fleet="bench", state=state, artifact=path, buffer=BufferTable(size=size)
    )
    coordinator = Coordinator(
        configuration,
        artifact=artifact,
        store=SqliteStore.open(state, durable=False),
        transport=broker.connect("coordinator", clean=False, manual_ack=True, window=64),
        clock=clock,
        signing=open_key(state),
    )
    device = broker.connect("devices", window=64)
    coordinator.start()
    device.start(lambda event: None)
    _settle(broker, coordinator, clock)
    topics, codec = FleetTopics("bench"), codec_for(configuration.update.canonical_codec)
    delta = np.full(layout.size, 0.001, np.float32)
    for number in range(UPDATES):
        update_id = hashlib.sha256(b"%d" % number).digest()[:16]
        payload = codec.encode(delta, layout, codec_seed(update_id))
        header = UpdateHeader(
            incarnation=bytes(8),
            base=coordinator.version.id,
            codec=configuration.update.canonical_codec,
            size=len(payload),
            sha256=hashlib.sha256(payload).digest(),
            fingerprint=layout.fingerprint,
            num_examples=10,
            steps_done=1,
            steps_planned=1,
        )
        device.publish(topics.begin(f"d{number:04d}", update_id), header.pack(payload))
        _settle(broker, coordinator, clock)
    if coordinator.figures().updates_accepted != UPDATES or coordinator.version.number != UPDATES // size:
        raise RuntimeError(f"not all were taken: {coordinator.figures()}")
    # Not ru_maxrss: a process inherits that from its parent.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) / 1024


def _settle(broker: LoopbackBroker, coordinator: Coordinator, clock: ManualClock) -> None:
    while broker.deliver_due() or coordinator.work() == 0:
        pass
    clock.advance(0.05)


def main(words: list[str]) -> int:
    """Without words, print the comparison; with an artifact, a folder and K, one peak."""
    if words:
        sys.stdout.write(f"{_serve(Path(words[0]), Path(words[1]), int(words[2]))}\n")
    else:
        sys.stdout.write(json.dumps(buffer_memory()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
