"""The line-up: which device of a fleet trains with which runtime, and under which interpreter."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_protocol.errors import ConfigError, RuntimeUnavailable
from hil.trial import Trial, attempt, attempt_in
from models.runtime import PREFERENCE, RUNTIMES, TrainingArtifact

__all__ = ["CHOICES", "MIXED", "Lineup", "Seat", "draw_up", "graphs_for"]

MIXED = "mixed"
"""All runtimes side by side in one fleet."""
CHOICES = (*RUNTIMES, MIXED)
_ELSEWHERE = "tflite"
"""The runtime that seldom lives in our own environment: it needs numpy 1.x."""
_USUAL_PYTHON = Path(__file__).parents[1] / ".venv-tflite" / "bin" / "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What one device trains with: a runtime, and the interpreter that its agent runs under."""

    runtime: str
    python: str = sys.executable


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """A seat for each device. ``absent`` says of each runtime of a mixed fleet that takes no part why, and
    what would help; ``rows`` is the longest batch that all of them take, None: any."""

    seats: Mapping[str, Seat]
    absent: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None


def graphs_for(runtime: str) -> tuple[str, ...]:
    """The kinds of graphs that a fleet of ``runtime`` needs in its artifact (see ``build_artifact``)."""
    names = RUNTIMES if runtime == MIXED else (runtime,)
    lite = any(RUNTIMES[name].suffix == ".tflite" for name in names)
    return ("onnx", "tflite") if lite else ("onnx",)


def draw_up(
    devices: Sequence[str], runtime: str, artifact: TrainingArtifact, *, tflite_python: Path | None = None
) -> Lineup:
    """Try the runtime on the artifact, or all of them for ``mixed``, and give the devices seats in turn.

    ``tflite_python`` is the interpreter whose packages hold ``tflite_runtime``: where it is not named, that
    of ``make demo-mixed``, or else our own.

    Raises:
        ConfigError: fewer devices than runtimes, or ``tflite_python`` cannot train the artifact.
        RuntimeUnavailable: the runtime does not work here; of a mixed fleet, all but one.
    """
    tried: dict[str, Trial] = {}
    seats: dict[str, Seat] = {}
    for name in PREFERENCE if runtime == MIXED else (runtime,):
        seat = Seat(runtime=name, python=str(_python_for(name, tflite_python)))
        # An interpreter of .tflite files writes to our standard error, and may die of a file.
        inside = RUNTIMES[name].suffix == ".onnx"
        trial = attempt(artifact, name) if inside else attempt_in(seat.python, _folder(artifact), name)
        tried[name] = trial
        if not trial.reason:
            seats[name] = seat
        elif name == _ELSEWHERE and tflite_python is not None:
            raise ConfigError(f"--tflite-python {tflite_python}: {trial.reason}")
    absent = {name: trial.reason for name, trial in tried.items() if trial.reason}
    if _ELSEWHERE in absent and not _USUAL_PYTHON.exists():
        absent[_ELSEWHERE] += "; `make demo-mixed` in a clone sets it up, or name a --tflite-python"
    if len(seats) < min(len(tried), 2):
        reasons = (f"{name}: {reason}" for name, reason in absent.items())
        raise RuntimeUnavailable("\n  ".join([f"no {runtime} fleet can be made up here", *reasons]))
    if len(devices) < len(seats):
        raise ConfigError(
            f"{len(devices)} devices cannot have {len(seats)} runtimes",
            hint=f"--devices {len(seats)}, or more",
        )
    order = list(seats.values())
    bounds = [tried[seat.runtime].rows for seat in order]
    return Lineup(
        seats={device: order[number % len(order)] for number, device in enumerate(devices)},
        absent=absent,
        rows=min((bound for bound in bounds if bound is not None), default=None),
    )


def _python_for(runtime: str, tflite_python: Path | None) -> Path:
    if runtime != _ELSEWHERE:
        return Path(sys.executable)
    if tflite_python is not None:
        return tflite_python
    return _USUAL_PYTHON if _USUAL_PYTHON.exists() else Path(sys.executable)


def _folder(artifact: TrainingArtifact) -> Path:
    if artifact.path is None:
        raise ValueError("another interpreter needs the artifact's folder")
    return artifact.path
