"""The models of the zoo: how large they are, how long a step takes against the MLP's, and what memory a
worker needs to train them.

``python -m hil.bench.zoo`` times the steps alone, in a process of its own: how many threads a runtime or
a BLAS takes is settled when it is loaded.
"""

import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.jobs import Job, Progress, Result, Trained, TrainJob
from edge_agent.samples import SampleStore
from edge_agent.worker_client import ProcessWorker
from fl_protocol.artifact import MANIFEST_NAME
from fl_protocol.codec import encode_model
from fl_protocol.errors import LichenError, RuntimeUnavailable
from fl_protocol.plan import TrainingPlan
from fl_protocol.version import VersionId
from models.runtime import RUNTIMES, Batch, Session, TrainingArtifact, split_flat, zero_slots
from models.zoo.catalogue import CATALOGUE

__all__ = ["fastest_steps", "worker_peak_mib", "zoo"]

UNIT = "digits-mlp"
ROWS = 32
ROUNDS = 15
STEPS = 5
SAMPLES = 256
TRAINING_TIMEOUT_S = 120.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MIB = 1 << 20


def zoo() -> dict[str, Any]:
    """Per model: parameters, bytes of its files, and for each runtime that is here the time of a step of 32
    rows, as a ratio to the MLP's in the first runtime, and the peak RSS of a real worker that trains it.

    Times are the fastest of 15 rounds, in which all models and runtimes take turns.

    Raises:
        LichenError: a training failed, or took longer than two minutes.
    """
    artifacts = {model.name: model.open() for model in CATALOGUE}
    fastest = _timed()
    runtimes = list(fastest[UNIT])
    unit = fastest[UNIT][runtimes[0]]
    rows = []
    for name, artifact in artifacts.items():
        sys.stderr.write(f"training {name}\n")
        rows.append(
            {
                "model": name,
                "parameters": artifact.layout.size,
                **_sizes(artifact),
                "step": {runtime: round(fastest[name][runtime] / unit, 1) for runtime in runtimes},
                "worker_mib": {runtime: worker_peak_mib(artifact, runtime) for runtime in runtimes},
            }
        )
    return {
        "runtimes": runtimes,
        "unit": f"{UNIT} in {runtimes[0]}",
        "unit_ms": round(unit * 1e3, 3),
        "models": rows,
    }


def _sizes(artifact: TrainingArtifact) -> dict[str, int]:
    files = {name: ref.size for name, ref in artifact.manifest.files.items()}
    files[MANIFEST_NAME] = len(artifact.manifest_json)
    graphs = {
        kind: sum(size for name, size in files.items() if name.endswith(f".{kind}"))
        for kind in ("onnx", "tflite")
    }
    return {**graphs, "bytes": sum(files.values())}


def _timed() -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "hil.bench.zoo"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **ONE_THREAD}
    )
    if done.returncode:
        raise LichenError(f"{' '.join(command)} failed")
    fastest: dict[str, dict[str, float]] = json.loads(done.stdout)
    return fastest


def fastest_steps(artifacts: Mapping[str, TrainingArtifact]) -> dict[str, dict[str, float]]:
    """Seconds of a step by model and runtime; all take turns, so that a busy moment hits them alike."""
    sessions: dict[tuple[str, str], Session] = {}
    for name, artifact in artifacts.items():
        for runtime in RUNTIMES:
            try:
                sessions[name, runtime] = RUNTIMES[runtime].open(artifact)
            except RuntimeUnavailable:
                continue
    fastest: dict[str, dict[str, float]] = {name: {} for name in artifacts}
    for _ in range(ROUNDS):
        for (name, runtime), session in sessions.items():
            seconds = _step_s(artifacts[name], session)
            fastest[name][runtime] = min(fastest[name].get(runtime, math.inf), seconds)
    return fastest


def _step_s(artifact: TrainingArtifact, session: Session) -> float:
    weights, slots = split_flat(artifact.initial_weights(), artifact.layout), zero_slots(artifact)
    batch = Batch.of(*_rows(artifact, ROWS))
    fastest = math.inf
    for _ in range(STEPS):
        started = time.perf_counter()
        session.step(weights, slots, batch, {"lr": 0.01}, weights)
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def _rows(artifact: TrainingArtifact, count: int) -> tuple[Any, Any]:
    """Rows of the artifact's shapes; what they hold changes neither time nor memory."""
    draw = np.random.default_rng(1)
    x, y = artifact.manifest.inputs
    rows = draw.standard_normal((count, *x.shape[1:])).astype(np.float32)
    if y.dtype == "float32":
        return rows, rows.reshape(count, *y.shape[1:])
    return rows, draw.integers(0, len(artifact.manifest.class_names), count).astype(np.int32)


def worker_peak_mib(artifact: TrainingArtifact, runtime: str) -> float:
    """The peak RSS of a worker process that opens the artifact, trains two passes over 256 samples, and
    encodes the update."""
    with tempfile.TemporaryDirectory() as folder:
        weights, samples = Path(folder, "weights"), Path(folder, "samples.db")
        weights.write_bytes(encode_model(artifact.initial_weights(), artifact.layout))
        with SampleStore(samples) as store:
            store.extend(*_rows(artifact, SAMPLES))
        job = TrainJob(
            update_id=bytes(16),
            device_seed=bytes(32),
            artifact_dir=str(artifact.path),
            weights_path=str(weights),
            samples_path=str(samples),
            plan=TrainingPlan(epochs=2, batch_size=ROWS, lr=0.01),
            base=VersionId(epoch=1, number=1, digest=bytes(16)),
            codec="eden(bits=1)",
            fingerprint=artifact.layout.fingerprint,
            max_examples=SAMPLES,
            runtimes=(runtime,),
        )
        arrived: queue.SimpleQueue[Result] = queue.SimpleQueue()

        def deliver(job: Job, result: Result) -> None:
            if not isinstance(result, Progress):
                arrived.put(result)

        worker = ProcessWorker(deliver, linger_s=TRAINING_TIMEOUT_S)
        try:
            worker.submit(job)
            result = arrived.get(timeout=TRAINING_TIMEOUT_S)
            if not isinstance(result, Trained):
                raise LichenError(f"{artifact.manifest.name} in {runtime}: {result}")
            return round(_peak_bytes(worker.process_id) / MIB, 1)
        except queue.Empty:
            raise LichenError(
                f"{artifact.manifest.name} did not train in {TRAINING_TIMEOUT_S:.0f} s"
            ) from None
        finally:
            worker.stop()


def _peak_bytes(process: int | None) -> int:
    """The most memory that a process has had resident, as Linux counts it (``VmHWM``)."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LichenError("the kernel does not tell a process's peak memory", hint="this bench needs Linux")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(fastest_steps({model.name: model.open() for model in CATALOGUE})))
