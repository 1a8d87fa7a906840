"""Trainers for code that is there already: Flower clients, PyTorch, Keras, scikit-learn.

Each is a base class: a subclass says what the model is, and agent.toml names it, as
``trainer = "my_app:Mine"``. A framework is imported when training begins, by the worker, and by nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.adapters.flower_trainer import FlowerTrainer
    from edge_agent.adapters.keras_trainer import KerasTrainer
    from edge_agent.adapters.sklearn_trainer import SklearnTrainer
    from edge_agent.adapters.torch_trainer import TorchTrainer

__all__ = ["FlowerTrainer", "KerasTrainer", "SklearnTrainer", "TorchTrainer"]

_HOMES = {
    "FlowerTrainer": "flower_trainer",
    "KerasTrainer": "keras_trainer",
    "SklearnTrainer": "sklearn_trainer",
    "TorchTrainer": "torch_trainer",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
