"""What the bench asks of a runtime, in a process of its own, under an interpreter that has it.

    python -m hil.bench.runtime_process build FOLDER OPTIONS      builds; prints the CPU seconds
    python -m hil.bench.runtime_process retrace FOLDER RUNTIME    prints how far it is from PyTorch: JSON
    python -m hil.bench.runtime_process steps FOLDER RUNTIME      takes steps (``step_times.serve``)

``FOLDER`` is one family's: ``graph.onnx``, ``sgd.npz`` and ``adamw.npz``; ``build`` adds the artifacts
``sgd/`` and ``adamw/``. ``OPTIONS`` are those of ``build_artifact``, as JSON.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hil.bench.recording import Recording
from hil.bench.step_times import serve
from models.runtime import RUNTIMES, TrainingArtifact, split_flat, zero_slots

__all__ = ["main"]

BUILDS = 5


def main(words: list[str]) -> int:
    """Do one of the above; the exit code."""
    task, folder = words[0], Path(words[1])
    if task == "build":
        sys.stdout.write(f"{_fastest_build(folder, json.loads(words[2]))}\n")
        return 0
    runtime = RUNTIMES[words[2]]
    if task == "retrace":
        found = {}
        for optimizer in ("sgd", "adamw"):
            artifact = TrainingArtifact.open(folder / optimizer)
            recording = Recording.load(folder / f"{optimizer}.npz")
            found[optimizer] = asdict(recording.retraced_by(runtime.open(artifact), artifact))
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    artifact = TrainingArtifact.open(folder / "sgd")
    recording = Recording.load(folder / "sgd.npz")
    session, slots = runtime.open(artifact), zero_slots(artifact)
    weights, batch = split_flat(artifact.initial_weights(), artifact.layout), recording.batches[0]
    serve(lambda: session.step(weights, slots, batch, recording.hyper, weights))
    return 0


def _fastest_build(folder: Path, options: Mapping[str, Any]) -> float:
    """Both artifacts written; the CPU seconds of the fastest of a few builds of the last, in one thread."""
    from models.build import build_artifact

    source, seconds = folder / "graph.onnx", []
    for optimizer, count in (("adamw", 1), ("sgd", BUILDS)):
        for _ in range(count):
            started = time.process_time()
            built = build_artifact(source, optimizer=optimizer, runtimes=("onnx", "tflite"), **options)
            seconds.append(time.process_time() - started)
        built.save(folder / optimizer)
    return min(seconds[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
