"""A scikit-learn estimator with ``partial_fit`` as a trainer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.sample_form import Array
from edge_agent.trainer import Samples, ShouldStop, TrainingResult, Weights
from fl_protocol.errors import ConfigError, LayoutError
from fl_protocol.plan import TrainingPlan

__all__ = ["SklearnTrainer"]

_TENSORS = ("coef_", "intercept_")
_LAYERS = ("coefs_", "intercepts_")
_TINY = 1e-12


class SklearnTrainer(ABC):
    """Trains a linear model (``SGDClassifier``, ``SGDRegressor`` and their like) or a neural network
    (``MLPClassifier``, ``MLPRegressor``), a batch at a time.

    A subclass gives the estimator, not fitted, and for a classifier ``classes``, all of them, the same on
    every device. Weights are called ``coef_`` and ``intercept_``; of networks ``coefs_.0``, ``intercepts_.0``
    and so on. x is flattened to ``float64[rows, features]``.
    """

    classes: Sequence[Any] | None = None

    @abstractmethod
    def estimator(self) -> Any:
        """An estimator with ``partial_fit``, made anew for each training and evaluation."""

    def configure(self, estimator: Any, plan: TrainingPlan) -> None:
        """Put the plan into the estimator's settings: a constant learning rate, the momentum of a network
        that has one, the seed.

        Raises:
            ConfigError: the plan asks for what scikit-learn has not: FedProx, clipping, momentum elsewhere.
        """
        has = estimator.get_params(deep=False)
        settings: dict[str, Any] = {"random_state": plan.seed}
        if "learning_rate_init" in has:
            settings["learning_rate_init"] = plan.lr
        elif "eta0" in has:
            settings |= {"learning_rate": "constant", "eta0": plan.lr}
        takes_momentum = "momentum" in has and has.get("solver") == "sgd"
        if takes_momentum:
            settings["momentum"] = plan.momentum
        asked = {
            "mu": plan.mu,
            "clip": plan.clip,
            "momentum": 0.0 if takes_momentum else plan.momentum,
        }
        refused = [name for name, value in asked.items() if value]
        if refused:
            raise ConfigError(
                f"{type(estimator).__name__} has no {' and no '.join(refused)}",
                hint=f"leave {' and '.join(refused)} out of [plan] in fleet.toml",
            )
        estimator.set_params(**{name: value for name, value in settings.items() if name in has})

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """See ``Trainer.train``: one ``partial_fit`` for each batch, which of a linear model is a pass over
        its rows one by one, of a network one step.

        Raises:
            ConfigError: an estimator that cannot be trained this way.
            LayoutError: the weights are not those of the estimator.
        """
        estimator = self.estimator()
        self.configure(estimator, plan)
        self._set(estimator, weights)
        steps = 0
        for x, y in samples.batches(plan.batch_size, epochs=plan.epochs, seed=plan.seed):
            if should_stop() or (plan.max_steps and steps >= plan.max_steps):
                break
            if "batch_size" in estimator.get_params(deep=False):
                estimator.set_params(batch_size=len(x))
            estimator.partial_fit(_rows(x), _targets(y))
            steps += 1
        return TrainingResult(self.weights(estimator), steps=steps)

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """See ``Trainer.evaluate``: ``correct`` answers, and ``loss`` (cross-entropy) where the estimator
        gives probabilities; of a regressor ``loss`` is half the squared error.

        Raises:
            LayoutError: the weights are not those of the estimator.
        """
        estimator = self.estimator()
        self._set(estimator, weights)
        x, y = samples.all()
        rows, targets = _rows(x), _targets(y)
        if self.classes is None:
            return {"loss": float(0.5 * ((estimator.predict(rows) - targets) ** 2).sum())}
        sums = {"correct": float((estimator.predict(rows) == targets).sum())}
        if hasattr(estimator, "predict_proba"):
            columns = np.searchsorted(np.asarray(estimator.classes_), targets)
            likelihood = estimator.predict_proba(rows)[np.arange(len(rows)), columns]
            sums["loss"] = float(-np.log(np.maximum(likelihood, _TINY)).sum())
        return sums

    def initial(self, features: int, *, targets: int = 1) -> dict[str, NDArray[np.float32]]:
        """What ``wrap_weights`` takes: weights to start from, for rows of ``features`` numbers. Those of a
        linear model are zero, those of a network as scikit-learn draws them; ``targets`` are a regressor's.

        Raises:
            ConfigError: an estimator that cannot be trained this way.
        """
        estimator = self.estimator()
        network = "learning_rate_init" in estimator.get_params(deep=False)
        if network:
            estimator.set_params(
                learning_rate_init=_TINY
            )  # to allocate takes a step, which is to change nothing
        self._allocate(estimator, features, targets)
        weights = self.weights(estimator)
        return weights if network else {name: np.zeros_like(array) for name, array in weights.items()}

    @staticmethod
    def weights(estimator: Any) -> dict[str, NDArray[np.float32]]:
        """What ``wrap_weights`` takes: the weights of a fitted estimator by name.

        Raises:
            ConfigError: it has none.
        """
        found: dict[str, Any] = {}
        for name in _LAYERS:
            found |= {f"{name}.{n}": layer for n, layer in enumerate(getattr(estimator, name, ()))}
        if not found:
            found = {name: getattr(estimator, name) for name in _TENSORS if hasattr(estimator, name)}
        if not found:
            raise ConfigError(
                f"{type(estimator).__name__} has no weights",
                hint="partial_fit it once on rows of the right width; of the linear models and the networks",
            )
        return {name: np.array(array, np.float32) for name, array in found.items()}

    def _set(self, estimator: Any, weights: Weights) -> None:
        """Let the estimator allocate all that it needs, then overwrite its weights."""
        first = weights.get("coef_", weights.get("coefs_.0"))
        intercepts = [name for name in weights if name.startswith("intercept")]
        if first is None or not intercepts:
            raise LayoutError(
                f"the artifact has {', '.join(weights)}", hint="wrap SklearnTrainer.weights(estimator)"
            )
        features = first.shape[0] if "coefs_.0" in weights else first.shape[-1]
        self._allocate(estimator, features, weights[max(intercepts, key=_layer)].size)
        own = self.weights(estimator)
        shapes = {name: array.shape for name, array in own.items()}
        given = {name: array.shape for name, array in weights.items()}
        if shapes != given:
            raise LayoutError(
                f"the artifact has {given}, the estimator {shapes}",
                hint="wrap the weights of this very estimator: SklearnTrainer.weights(estimator)",
            )
        if hasattr(estimator, _LAYERS[0]):
            for name in _LAYERS:
                layers = [np.array(weights[f"{name}.{n}"]) for n in range(len(getattr(estimator, name)))]
                setattr(estimator, name, layers)
            vars(estimator).pop("_optimizer", None)  # its slots start at zero, and it held the old arrays
        else:
            for name in _TENSORS:
                setattr(estimator, name, np.array(weights[name], getattr(estimator, name).dtype))
            estimator.t_ = 1.0

    def _allocate(self, estimator: Any, features: int, targets: int) -> None:
        """One ``partial_fit`` on rows of zeros."""
        if not hasattr(estimator, "partial_fit"):
            raise ConfigError(
                f"{type(estimator).__name__} has no partial_fit",
                hint="take SGDClassifier, SGDRegressor, MLPClassifier or MLPRegressor",
            )
        if getattr(estimator, "average", False):
            raise ConfigError(
                "an estimator with average=True keeps two sets of weights", hint="average=False"
            )
        if self.classes is None:
            y = np.zeros((2, targets)) if targets > 1 else np.zeros(2)
            estimator.partial_fit(np.zeros((2, features)), y)
        else:
            classes = np.sort(np.asarray(self.classes))
            estimator.partial_fit(np.zeros((len(classes), features)), classes, classes=classes)


def _layer(name: str) -> int:
    return int(name.rpartition(".")[2]) if "." in name else 0


def _rows(x: Array) -> NDArray[np.float64]:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def _targets(y: Array) -> Array:
    """One target a row as scikit-learn wants it, several as they are."""
    return y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
