"""Optimizers: nodes that turn a parameter, its gradient and its slots into the next ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from models.build.graph import WorkingGraph
from models.runtime.session import STEP_COUNTER

__all__ = ["OPTIMIZERS", "Optimizer", "Update"]

Update: TypeAlias = Callable[[WorkingGraph, str, str, Mapping[str, str]], tuple[str, dict[str, str]]]
"""``update(graph, weight, gradient, slots)`` gives the new weight and the new slots; the scalars of
``Optimizer.hyper`` are inputs of the graph under their own names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An optimizer: its state tensors per parameter, its scalars with defaults, its update.

    The first slot is one that takes up the bare gradient where all scalars but ``lr`` are 0: the gradient
    check reads it there. An optimizer that ``counts`` has one more input, ``t``: the number of the step,
    the first being 1, which the step graph counts by itself.
    """

    slots: tuple[str, ...]
    hyper: Mapping[str, float]
    update: Update
    counts: bool = False

    @property
    def all_slots(self) -> tuple[str, ...]:
        """The slots, the counter among them where there is one."""
        return (*self.slots, STEP_COUNTER) if self.counts else self.slots


def _sgd(
    graph: WorkingGraph, weight: str, gradient: str, slots: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """``v = momentum * v + gradient; w = w - lr * v`` (Polyak, 1964; the form of Sutskever et al., 2013)."""
    velocity = graph.op("Add", graph.op("Mul", "momentum", slots["v"]), gradient)
    return graph.op("Sub", weight, graph.op("Mul", "lr", velocity)), {"v": velocity}


def _nesterov(
    graph: WorkingGraph, weight: str, gradient: str, slots: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """``v = momentum * v + gradient; w = w - lr * (gradient + momentum * v)`` (Sutskever et al., 2013)."""
    velocity = graph.op("Add", graph.op("Mul", "momentum", slots["v"]), gradient)
    ahead = graph.op("Add", gradient, graph.op("Mul", "momentum", velocity))
    return graph.op("Sub", weight, graph.op("Mul", "lr", ahead)), {"v": velocity}


def _adamw(
    graph: WorkingGraph, weight: str, gradient: str, slots: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """Loshchilov, Hutter: Decoupled weight decay regularization (2019), algorithm 2."""
    square = graph.op("Mul", gradient, gradient)
    first = _blended(graph, "beta1", slots["m"], gradient)
    second = _blended(graph, "beta2", slots["v"], square)
    mean = graph.op("Div", first, _unbiased(graph, "beta1", slots[STEP_COUNTER]))
    spread = graph.op("Sqrt", graph.op("Div", second, _unbiased(graph, "beta2", slots[STEP_COUNTER])))
    step = graph.op("Div", mean, graph.op("Add", spread, "epsilon"))
    decayed = graph.op("Add", step, graph.op("Mul", "weight_decay", weight))
    return graph.op("Sub", weight, graph.op("Mul", "lr", decayed)), {"m": first, "v": second}


def _blended(graph: WorkingGraph, beta: str, old: str, new: str) -> str:
    rest = graph.op("Sub", graph.constant(1), beta)
    return graph.op("Add", graph.op("Mul", beta, old), graph.op("Mul", rest, new))


def _unbiased(graph: WorkingGraph, beta: str, count: str) -> str:
    return graph.op("Sub", graph.constant(1), graph.op("Pow", beta, count))


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "sgd": Optimizer(slots=("v",), hyper={"lr": 0.1, "momentum": 0.0}, update=_sgd),
        "nesterov": Optimizer(slots=("v",), hyper={"lr": 0.1, "momentum": 0.9}, update=_nesterov),
        "adamw": Optimizer(
            slots=("m", "v"),
            hyper={"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01},
            update=_adamw,
            counts=True,
        ),
    }
)
"""Every optimizer by its name."""
