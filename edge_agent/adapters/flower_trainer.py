"""A Flower client as a trainer: its ``fit`` and ``evaluate`` are called as Flower calls them.

Beutel et al.: Flower: A Friendly Federated Learning Research Framework (2020). A ``NumPyClient`` needs no
Flower on the device; what Flower itself must drive (``ClientApp``, ``Client``) needs its package.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainer import Samples, ShouldStop, TrainingResult, Weights, planned_steps
from fl_protocol.errors import ConfigError, LayoutError
from fl_protocol.plan import TrainingPlan

__all__ = ["FlowerTrainer", "NumPyClient", "Scalar"]

Scalar: TypeAlias = bool | bytes | float | int | str
_SUMS = {
    "accuracy": "correct",
    "acc": "correct",
    "eval_accuracy": "correct",
    "eval_acc": "correct",
    "eval_loss": "loss",
}
"""Metrics that a fleet's figures know by another name: shares of right answers, summed, are their number."""


class NumPyClient(Protocol):
    """What is asked of a client: the two methods of Flower's class of this name."""

    def fit(
        self, parameters: list[NDArray[Any]], config: dict[str, Scalar]
    ) -> tuple[list[NDArray[Any]], int, Mapping[str, Scalar]]:
        """Train from ``parameters``: the trained ones, the number of examples, metrics."""
        ...

    def evaluate(
        self, parameters: list[NDArray[Any]], config: dict[str, Scalar]
    ) -> tuple[float, int, Mapping[str, Scalar]]:
        """Mean loss, number of examples, and metrics as means."""
        ...


class FlowerTrainer(ABC):
    """Lets an unmodified Flower client take part.

    A subclass gives the client. One that loads data of its own, as clients do in Flower, sets
    ``brings_samples = True``, and ``min_samples = 0`` under ``[gates]`` in agent.toml; what it returns as the
    number of examples is what its update counts, up to the task's limit. One that is made from the samples of
    the device is made anew for each call. ``node_config`` and ``run_config`` are those of a ``ClientApp``'s
    context. ``order`` names the tensors as the client has them in its list, where that is not their order in
    the artifact.

    ``fit`` cannot be interrupted: the plan's deadline must leave it time.
    """

    brings_samples: bool = False
    node_config: ClassVar[Mapping[str, Any]] = {}
    run_config: ClassVar[Mapping[str, Any]] = {}
    order: Sequence[str] = ()

    @abstractmethod
    def client(self, samples: Samples) -> Any:
        """A ``NumPyClient``, a ``Client`` or a ``ClientApp``; ``samples`` are those to train on or, for
        ``evaluate``, those held out."""

    def config(self, plan: TrainingPlan) -> dict[str, Scalar]:
        """The ``config`` of ``fit`` and of a ``ClientApp``'s messages: a server's part in Flower."""
        return {
            "lr": plan.lr,
            "momentum": plan.momentum,
            "epochs": plan.epochs,
            "local_epochs": plan.epochs,
            "batch_size": plan.batch_size,
            "max_steps": plan.max_steps,
            "proximal_mu": plan.mu,
            "clip": plan.clip,
            "seed": plan.seed,
            "version": plan.version,
            "server_round": plan.version,
        }

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """See ``Trainer.train``: one ``fit``, which counts as the whole of the planned training.

        Raises:
            ConfigError: ``client`` gives no client.
            LayoutError: the client returns other tensors than it was given.
        """
        if should_stop():
            return TrainingResult(weights, steps=0)
        names = self._names(weights)
        client = self._party(names, self.client(samples))
        arrays, counted, _ = client.fit(_copies(weights, names), self.config(plan))
        examples = int(counted)
        trained = dict(zip(names, _fitting(arrays, weights, names), strict=True))
        steps = max(1, planned_steps(plan, examples))  # without an example it is the count that says so
        return TrainingResult(trained, steps=steps, num_examples=examples)

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """See ``Trainer.evaluate``: the client's means become sums, its accuracy the number of right answers.

        Nothing where the client evaluated no example.
        """
        names = self._names(weights)
        client = self._party(names, self.client(samples))
        loss, counted, metrics = client.evaluate(_copies(weights, names), {})
        count = int(counted)
        if count < 1:
            return {}
        means = {"loss": loss, **metrics}
        sums = {
            _SUMS.get(name, name): float(mean) * count
            for name, mean in means.items()
            if not isinstance(mean, str | bytes) and math.isfinite(mean)
        }
        return {**sums, "count": float(count)}

    @staticmethod
    def weights(
        arrays: Sequence[NDArray[Any]], names: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """A client's parameters by name, in its order: what ``wrap_weights`` takes. float32, whatever they
        were; ``parameter_0`` and so on where they have no names."""
        named = names or [f"parameter_{number}" for number in range(len(arrays))]
        return {name: np.asarray(array, np.float32).copy() for name, array in zip(named, arrays, strict=True)}

    def _names(self, weights: Weights) -> list[str]:
        if not self.order:
            return list(weights)
        if sorted(self.order) != sorted(weights):
            raise LayoutError(
                f"order names {', '.join(self.order)}; the artifact has {', '.join(weights)}",
                hint="name each tensor of the artifact once",
            )
        return list(self.order)

    def _party(self, names: Sequence[str], client: Any) -> NumPyClient:
        """The client as something with the methods of a ``NumPyClient``."""
        from edge_agent.adapters.flower_app import app_client, is_app, is_client

        if is_app(client) or is_client(client):
            return app_client(client, names, node_config=self.node_config, run_config=self.run_config)
        if not callable(getattr(client, "fit", None)) or not callable(getattr(client, "evaluate", None)):
            raise ConfigError(
                f"{type(self).__name__}.client gives a {type(client).__name__}",
                hint="return a NumPyClient, a Client or a ClientApp: for a client_fn, ClientApp(client_fn)",
            )
        made: NumPyClient = client
        return made


def _copies(weights: Weights, names: Sequence[str]) -> list[NDArray[Any]]:
    """Arrays that a client may write to."""
    return [np.array(weights[name]) for name in names]


def _fitting(
    arrays: Sequence[NDArray[Any]], weights: Weights, names: Sequence[str]
) -> list[NDArray[np.float32]]:
    if len(arrays) != len(names):
        raise LayoutError(
            f"the client's fit returns {len(arrays)} arrays, the model has {len(names)}",
            hint="fit returns all parameters, in the order in which it was given them",
        )
    for name, array in zip(names, arrays, strict=True):
        if np.shape(array) != weights[name].shape:
            raise LayoutError(
                f"the client's fit returns {list(np.shape(array))} for {name!r} of shape"
                f" {list(weights[name].shape)}",
                hint="fit returns all parameters, in the order in which it was given them",
            )
    return [np.array(array, np.float32) for array in arrays]  # a client goes on using its own
