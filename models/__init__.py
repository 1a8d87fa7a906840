"""Training artifacts: ``runtime`` opens and runs them, ``build`` makes them, ``zoo`` has ready ones.

Names are imported at first use, so that opening an artifact does not ask for the builder's extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.build import build_artifact, inspect_model, wrap_weights
    from models.runtime import Batch, Runtime, Session, StepResult, TrainingArtifact, open_session

__all__ = [
    "Batch",
    "Runtime",
    "Session",
    "StepResult",
    "TrainingArtifact",
    "build_artifact",
    "inspect_model",
    "open_session",
    "wrap_weights",
]

_HOMES = {
    "Batch": "runtime",
    "Runtime": "runtime",
    "Session": "runtime",
    "StepResult": "runtime",
    "TrainingArtifact": "runtime",
    "build_artifact": "build",
    "inspect_model": "build",
    "open_session": "runtime",
    "wrap_weights": "build",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
