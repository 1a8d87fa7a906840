"""Which runtime trains here: found out by a real session and the golden steps, never by a version."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.runtime.artifact import GOLDEN_FILE, TrainingArtifact
from models.runtime.flat import split_flat
from models.runtime.golden import TOLERANCE, GoldenSteps, deviation
from models.runtime.litert_runtime import LitertRuntime
from models.runtime.numpy_runtime import NumpyRuntime
from models.runtime.onnx_runtime import OnnxRuntime
from models.runtime.session import STEP, Runtime, Session, zero_slots
from models.runtime.tflite_runtime import TfliteRuntime

__all__ = ["PREFERENCE", "RUNTIMES", "RuntimeTrial", "open_session", "runtimes_for", "try_runtime"]

RUNTIMES: Mapping[str, Runtime] = MappingProxyType(
    {"onnx": OnnxRuntime(), "litert": LitertRuntime(), "tflite": TfliteRuntime(), "numpy": NumpyRuntime()}
)
"""Every runtime by its name."""
PREFERENCE = ("onnx", "litert", "tflite", "numpy")
"""The order in which runtimes are tried where nobody says otherwise: fastest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeTrial:
    """How an artifact fared in a runtime.

    ``installed`` says whether the runtime is there at all; ``deviation`` is the largest one over the
    golden steps and ``step_ms`` the fastest step of the largest golden batch, both ``None`` where it
    did not come that far; ``reason`` is empty where the runtime may be used.
    """

    runtime: str
    installed: bool = True
    deviation: float | None = None
    step_ms: float | None = None
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether the runtime is there and may not be used."""
        return self.installed and bool(self.reason)


def open_session(
    artifact: TrainingArtifact, preference: Sequence[str] = PREFERENCE
) -> tuple[Session, list[str]]:
    """Open the artifact in the first runtime that reproduces its golden steps.

    Returns the session, and for each runtime passed over a line that says why.

    Raises:
        RuntimeUnavailable: none of them works here; the message holds every reason.
    """
    skipped: list[str] = []
    for name in preference:
        try:
            return _opened(name, artifact), skipped
        except ArtifactError as error:
            skipped.append(f"{name}: {error}")
    raise RuntimeUnavailable(
        "\n  ".join([f"no runtime can train {artifact.manifest.name!r} here", *skipped]),
        hint="`lichen models verify` on the machine that built the artifact tells whether it is sound",
    )


def runtimes_for(artifact: TrainingArtifact) -> tuple[str, ...]:
    """The names of the runtimes that the artifact holds graphs for."""
    return tuple(
        name for name, runtime in RUNTIMES.items() if STEP + runtime.suffix in artifact.manifest.files
    )


def try_runtime(name: str, artifact: TrainingArtifact, *, timed_steps: int = 0) -> RuntimeTrial:
    """Open the artifact in one runtime, run its golden steps, and time ``timed_steps`` further ones."""
    try:
        session = _named(name).open(artifact)
    except RuntimeUnavailable as error:
        return RuntimeTrial(runtime=name, installed=False, reason=str(error))
    except ArtifactError as error:
        return RuntimeTrial(runtime=name, reason=str(error))
    try:
        worst = deviation(artifact, session)
        step_ms = _step_ms(artifact, session, timed_steps) if timed_steps else None
    except ArtifactError as error:
        return RuntimeTrial(runtime=name, reason=str(error))
    return RuntimeTrial(runtime=name, deviation=worst, step_ms=step_ms, reason=_verdict(worst))


def _opened(name: str, artifact: TrainingArtifact) -> Session:
    session = _named(name).open(artifact)
    reason = _verdict(deviation(artifact, session))
    if reason:
        raise RuntimeUnavailable(reason)
    return session


def _named(name: str) -> Runtime:
    runtime = RUNTIMES.get(name)
    if runtime is None:
        raise RuntimeUnavailable(f"no runtime is called {name!r}", hint=f"there are {', '.join(RUNTIMES)}")
    return runtime


def _verdict(worst: float) -> str:
    if worst <= TOLERANCE:
        return ""
    return f"the golden steps deviate by {worst:.1e}, more than {TOLERANCE:.0e}"


def _step_ms(artifact: TrainingArtifact, session: Session, count: int) -> float:
    golden = GoldenSteps.from_bytes(artifact.read(GOLDEN_FILE), tuple(artifact.manifest.hyper))
    step = max(golden.steps, key=lambda step: len(step.batch.x))
    weights, slots = split_flat(artifact.initial_weights(), artifact.layout), zero_slots(artifact)
    fastest = float("inf")
    for _ in range(count):
        start = time.perf_counter()
        session.step(weights, slots, step.batch, step.hyper, weights)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest * 1e3
