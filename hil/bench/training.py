"""Training beside PyTorch: is every runtime exact, how long does a step take, how large is an artifact, how
long does its build take, and what memory does a worker need.

PyTorch lives in an environment of its own (``make .venv-frameworks/.ready``), tflite_runtime too
(``make .venv-tflite/.ready``); without the latter its figures are left out.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_protocol.errors import LichenError, RuntimeUnavailable
from hil.bench.step_times import StepProcess, take_turns
from hil.bench.zoo import worker_peak_mib
from models.runtime import TrainingArtifact

__all__ = ["training"]

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ROOT / ".venv-frameworks" / "bin" / "python"
TFLITE = ROOT / ".venv-tflite" / "bin" / "python"
MEASURED_WORKERS = {"cnn, group norm": ("onnx", "litert")}
RECORD_TIMEOUT_S = 600.0
BUILD_TIMEOUT_S = RETRACE_TIMEOUT_S = 300.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def training() -> dict[str, Any]:
    """Per family of ``torch_families``: what ``docs/benchmarks.md`` says of it.

    Raises:
        RuntimeUnavailable: there is no PyTorch.
        LichenError: a process failed.
    """
    if not FRAMEWORKS.exists():
        raise RuntimeUnavailable(
            "there is no PyTorch to compare with; the earlier figures stay",
            hint="make .venv-frameworks/.ready",
        )
    with tempfile.TemporaryDirectory() as scratch:
        _run(str(FRAMEWORKS), "hil.bench.torch_reference", "record", scratch, timeout_s=RECORD_TIMEOUT_S)
        families = json.loads(Path(scratch, "families.json").read_text())
        return {
            "versions": _versions(),
            "families": [_measured(Path(scratch, name), name, options) for name, options in families.items()],
        }


def _measured(folder: Path, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    sys.stderr.write(f"training {name}\n")
    built = _run(
        sys.executable,
        "hil.bench.runtime_process",
        "build",
        str(folder),
        json.dumps(options),
        timeout_s=BUILD_TIMEOUT_S,
    )
    artifact = TrainingArtifact.open(folder / "sgd")
    runtimes = {"onnx": sys.executable, "litert": sys.executable, "numpy": sys.executable}
    if TFLITE.exists():
        runtimes["tflite"] = str(TFLITE)
    files = {file: ref.size for file, ref in artifact.manifest.files.items()}
    return {
        "family": name,
        "parameters": artifact.layout.weight_size,
        "build_cpu_s": round(float(built), 2),
        "step_onnx_bytes": files["step.onnx"],
        "tflite_bytes": sum(size for file, size in files.items() if file.endswith(".tflite")),
        "drift": json.loads((folder / "drift.json").read_text()),
        "deviation": {
            runtime: json.loads(
                _run(
                    python,
                    "hil.bench.runtime_process",
                    "retrace",
                    str(folder),
                    runtime,
                    timeout_s=RETRACE_TIMEOUT_S,
                )
            )
            for runtime, python in runtimes.items()
        },
        "step": _step_times(folder, name, runtimes),
        "worker_mib": {
            runtime: worker_peak_mib(artifact, runtime) for runtime in MEASURED_WORKERS.get(name, ())
        },
    }


def _step_times(folder: Path, name: str, runtimes: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """The fastest step in milliseconds, and the median ratio to PyTorch's (``torch``: the same step;
    ``torch_plain``: without row weights, clipping and FedProx)."""
    with contextlib.ExitStack() as stack:

        def started(python: str, *words: str) -> StepProcess:
            return stack.enter_context(StepProcess(python, words, folder=ROOT))

        processes = {
            "torch": started(str(FRAMEWORKS), "hil.bench.torch_reference", "steps", name),
            "torch_plain": started(str(FRAMEWORKS), "hil.bench.torch_reference", "plain", name),
        }
        processes |= {
            runtime: started(python, "hil.bench.runtime_process", "steps", str(folder), runtime)
            for runtime, python in runtimes.items()
        }
        times = take_turns(processes)
    return {
        each: {
            "ms": round(1e3 * min(seconds), 3),
            "to_torch": _ratio(seconds, times["torch"]),
            "to_onnx": _ratio(seconds, times["onnx"]),
        }
        for each, seconds in times.items()
    }


def _ratio(these: list[float], those: list[float]) -> float:
    """The median over the rounds of one time as a multiple of the other."""
    return round(statistics.median(a / b for a, b in zip(these, those, strict=True)), 2)


def _versions() -> dict[str, str]:
    """What was compared with what."""
    asked = {
        "torch": (str(FRAMEWORKS), "torch"),
        "onnx": (sys.executable, "onnxruntime"),
        "litert": (sys.executable, "ai-edge-litert"),
        "numpy": (sys.executable, "numpy"),
    }
    if TFLITE.exists():
        asked["tflite"] = (str(TFLITE), "tflite-runtime")
    show = "import sys; from importlib.metadata import version; sys.stdout.write(version(sys.argv[1]))"
    return {
        name: subprocess.run(
            [python, "-c", show, package], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for name, (python, package) in asked.items()
    }


def _run(python: str, module: str, *words: str, timeout_s: float) -> str:
    """What a process of ours prints.

    Raises:
        LichenError: it failed, or took too long.
    """
    command = [python, "-m", module, *words]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
        )
    except subprocess.TimeoutExpired:
        raise LichenError(f"{module} {words[0]} ran longer than {timeout_s:.0f} s") from None
    if done.returncode:
        raise LichenError(f"{module} {words[0]} failed: {done.stderr[-2000:]}")
    return done.stdout
