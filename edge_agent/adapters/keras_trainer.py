"""A Keras 3 model as a trainer, on whatever backend Keras was set to."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainer import Samples, ShouldStop, TrainingResult, Weights
from fl_protocol.errors import LayoutError
from fl_protocol.plan import TrainingPlan

__all__ = ["KerasTrainer"]

_EVALUATION_ROWS = 256


class KerasTrainer(ABC):
    """Trains a model on the samples of the device.

    A subclass gives the model and ``loss``, a Keras loss or its name. Variables go by their ``path``: those
    in the artifact are set from the published weights and returned; all others keep what ``model`` gave them
    and are never trained. A BatchNormalization whose moving statistics are not in the artifact is frozen, as
    Keras means it: scale and offset too.
    """

    loss: Any = None
    _model: Any = None
    _own: Mapping[str, NDArray[Any]]

    @abstractmethod
    def model(self) -> Any:
        """The model, built, made once for each training."""

    def optimizer(self, plan: TrainingPlan) -> Any:
        """A new optimizer: plain SGD, with the plan's momentum."""
        import keras

        return keras.optimizers.SGD(learning_rate=plan.lr, momentum=plan.momentum)

    def metrics(self, output: NDArray[Any], y: NDArray[Any]) -> Mapping[str, float]:
        """Sums over a batch besides ``loss``: of a classifier, the number of ``correct`` answers."""
        if y.dtype.kind not in "iu" or output.ndim != y.ndim + 1:
            return {}
        return {"correct": float((output.argmax(-1) == y).sum())}

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """See ``Trainer.train``. FedProx (Li et al., 2020) is a part of the loss here, so that a clip holds
        for its gradient too.

        Raises:
            LayoutError: the model has no such variables.
        """
        import keras

        model, variables = self._opened(weights)
        keras.utils.set_random_seed(plan.seed)
        _seed(model, plan.seed)
        own = {path: variable.regularizer for path, variable in variables.items()}
        optimizer = self.optimizer(plan)
        if plan.clip:
            optimizer.global_clipnorm = plan.clip
        steps = 0
        try:
            for path, variable in variables.items():
                if plan.mu and variable.trainable:
                    variable.regularizer = _pull(weights[path], plan.mu, own[path])
            model.compile(optimizer=optimizer, loss=self.loss)
            for x, y in samples.batches(plan.batch_size, epochs=plan.epochs, seed=plan.seed):
                if should_stop() or (plan.max_steps and steps >= plan.max_steps):
                    break
                model.train_on_batch(x, y)
                steps += 1
        finally:
            for path, variable in variables.items():
                variable.regularizer = own[path]
        return TrainingResult({path: _array(variable) for path, variable in variables.items()}, steps=steps)

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """See ``Trainer.evaluate``: the sum of ``loss``, and those of ``metrics``.

        Raises:
            LayoutError: the model has no such variables.
        """
        import keras

        model, _ = self._opened(weights)
        loss = keras.losses.get(self.loss)
        sums: dict[str, float] = {}
        for x, y in samples.batches(_EVALUATION_ROWS):
            output = np.asarray(model.predict_on_batch(x))
            mean = keras.ops.mean(loss(y, output))
            values = {"loss": float(keras.ops.convert_to_numpy(mean)) * len(x), **self.metrics(output, y)}
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    @staticmethod
    def weights(
        model: Any, names: Sequence[str] = ("*",), *, buffers: bool = False
    ) -> dict[str, NDArray[np.float32]]:
        """What ``wrap_weights`` takes: the trainable variables whose path matches one of the shell patterns
        ``names``; with ``buffers`` the matching moving statistics after them.

        Keras numbers the names of models and layers that have none: here ``model`` is the first of its
        process, as it will be on the device, or has names of its own.
        """
        variables = [*model.trainable_variables]
        if buffers:
            variables += [entry for entry in model.non_trainable_variables if _is_float(entry)]
        return {
            entry.path: _array(entry)
            for entry in variables
            if any(fnmatchcase(entry.path, pattern) for pattern in names)
        }

    def _opened(self, weights: Weights) -> tuple[Any, dict[str, Any]]:
        """The model with ``weights`` set, all else as it was made; and the variables of those paths."""
        import keras

        if self._model is None:
            keras.utils.clear_session(free_memory=False)  # names that Keras counts start anew, as anywhere
            self._model = self.model()
            self._own = {entry.path: _content(entry) for entry in self._model.non_trainable_variables}
        model = self._model
        present = {entry.path: entry for entry in model.variables}
        for path, content in self._own.items():
            present[path].assign(content)
        for path, array in weights.items():
            variable = present.get(path)
            if variable is None or tuple(variable.shape) != array.shape:
                found = "no such variable" if variable is None else f"one of shape {list(variable.shape)}"
                raise LayoutError(
                    f"the artifact has {path!r} of shape {list(array.shape)}, the model {found}",
                    hint="wrap the weights of this very model; Keras counts names, so build it first in the"
                    " process, or name model and layers yourself",
                )
            variable.assign(array)
        _freeze(model, weights)
        return model, {path: present[path] for path in weights}


def _seed(model: Any, seed: int) -> None:
    """Start each generator of the model, a Dropout's for instance, at a place that the seed decides."""
    generators = [entry for entry in model.variables if entry.path.endswith("seed_generator_state")]
    for number, generator in enumerate(generators):
        generator.assign(np.array([(seed + number) % 2**32, 0], np.uint32))


def _freeze(model: Any, weights: Weights) -> None:
    """Leave trainable what is in the artifact."""
    import keras

    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            moving = [layer.moving_mean.path, layer.moving_variance.path]
            layer.trainable = layer.trainable and all(path in weights for path in moving)
    for variable in model.trainable_variables:
        if variable.path not in weights:
            variable.trainable = False


def _pull(anchor: NDArray[np.float32], mu: float, own: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """The regularizer ``mu / 2 * |w - anchor|^2``, on top of a variable's own."""

    def pull(variable: Any) -> Any:
        import keras

        away = variable - keras.ops.convert_to_tensor(anchor)
        loss = 0.5 * mu * keras.ops.sum(keras.ops.square(away))
        return loss if own is None else loss + own(variable)

    return pull


def _is_float(variable: Any) -> bool:
    return "float" in str(variable.dtype)


def _content(variable: Any) -> NDArray[Any]:
    import keras

    return np.array(keras.ops.convert_to_numpy(variable.value))


def _array(variable: Any) -> NDArray[np.float32]:
    return np.array(_content(variable), np.float32)
