"""Optimizers: nodes that turn a parameter, its gradient and its slots into the next ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from models.build.graph import WorkingGraph

__all__ = ["OPTIMIZERS", "Optimizer", "Update"]

Update: TypeAlias = Callable[[WorkingGraph, str, str, Mapping[str, str]], tuple[str, dict[str, str]]]
"""``update(graph, weight, gradient, slots)`` gives the new weight and the new slots; the scalars of
``Optimizer.hyper`` are inputs of the graph under their own names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An optimizer: its state tensors per parameter, its scalars with defaults, its update."""

    slots: tuple[str, ...]
    hyper: Mapping[str, float]
    update: Update


def _sgd(
    graph: WorkingGraph, weight: str, gradient: str, slots: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """``v = momentum * v + gradient; w = w - lr * v`` (Polyak, 1964; the form of Sutskever et al., 2013)."""
    velocity = graph.op("Add", graph.op("Mul", "momentum", slots["v"]), gradient)
    return graph.op("Sub", weight, graph.op("Mul", "lr", velocity)), {"v": velocity}


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {"sgd": Optimizer(slots=("v",), hyper={"lr": 0.1, "momentum": 0.0}, update=_sgd)}
)
"""Every optimizer by its name."""
