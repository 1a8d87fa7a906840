"""Lichen: federated learning that survives anywhere.

The names that users import. Each is loaded at first use, so that importing ``lichen`` costs nothing and
asks for no extra.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.adapters import FlowerTrainer, KerasTrainer, SklearnTrainer, TorchTrainer
    from edge_agent.predictor import Predictor
    from edge_agent.samples import SampleStore
    from edge_agent.trainer import TrainingResult
    from hil.simulate.simulation import simulate
    from models.build import build_artifact, from_keras, from_sklearn, from_torch, wrap_weights
    from models.runtime.artifact import TrainingArtifact

__all__ = [
    "FlowerTrainer",
    "KerasTrainer",
    "Predictor",
    "SampleStore",
    "SklearnTrainer",
    "TorchTrainer",
    "TrainingArtifact",
    "TrainingResult",
    "__version__",
    "build_artifact",
    "from_keras",
    "from_sklearn",
    "from_torch",
    "simulate",
    "wrap_weights",
]

__version__ = "0.1.0"

_HOMES = {
    "FlowerTrainer": "edge_agent.adapters",
    "KerasTrainer": "edge_agent.adapters",
    "Predictor": "edge_agent.predictor",
    "SampleStore": "edge_agent.samples",
    "SklearnTrainer": "edge_agent.adapters",
    "TorchTrainer": "edge_agent.adapters",
    "TrainingArtifact": "models.runtime.artifact",
    "TrainingResult": "edge_agent.trainer",
    "build_artifact": "models.build",
    "from_keras": "models.build",
    "from_sklearn": "models.build",
    "from_torch": "models.build",
    "simulate": "hil.simulate.simulation",
    "wrap_weights": "models.build",
}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lichen' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
