"""What the bench asks of a runtime, in a process of its own, under an interpreter that has it.

    python -m hil.bench.runtime_process retrace FOLDER RUNTIME    prints how far it is from PyTorch: JSON
    python -m hil.bench.runtime_process steps FOLDER RUNTIME      takes steps (``step_times.serve``)

``FOLDER`` is one family's: ``sgd.npz`` and ``adamw.npz``, with the artifacts ``sgd/`` and ``adamw/``.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from hil.bench.recording import Recording
from hil.bench.step_times import serve
from models.runtime import RUNTIMES, TrainingArtifact, split_flat, zero_slots

__all__ = ["main"]


def main(words: list[str]) -> int:
    """Do one of the above; the exit code."""
    task, folder, runtime = words[0], Path(words[1]), RUNTIMES[words[2]]
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
