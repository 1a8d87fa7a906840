"""A Keras model on the PyTorch back end, as a PyTorch module whose parameters have Keras' names.

Keras keeps its variables where PyTorch's exporter sees but nameless constants; ``stateless_call`` takes them
as arguments instead. Layers that work otherwise in training are put as the PyTorch functions that an
exporter knows by name.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.build.torch_export import import_torch

if TYPE_CHECKING:
    import keras
    import torch

__all__ = ["as_nodes", "check_model", "import_keras", "module_of", "running_statistics"]

_ONLY_IN_TRAINING = (
    "AlphaDropout",
    "AugMix",
    "CutMix",
    "GaussianDropout",
    "GaussianNoise",
    "MixUp",
    "Rand",  # RandAugment and all of Random...
    "SpatialDropout",
    "SpectralNormalization",
)
"""Beginnings of the names of layers that do something in training alone, which no graph of ours does."""


def import_keras() -> Any:
    """Keras 3 on PyTorch.

    Raises:
        RuntimeUnavailable: it is not installed, or runs on something else.
    """
    import_torch()
    try:
        import keras
    except ImportError as error:
        raise RuntimeUnavailable(f"Keras cannot be imported: {error}", hint=_BACKEND) from None
    backend = keras.config.backend() if hasattr(keras, "config") else "tensorflow"
    if backend != "torch":
        raise RuntimeUnavailable(
            f"Keras runs on {backend} here, whose exports drop parameters", hint=_BACKEND
        )
    return keras


_BACKEND = (
    "pip install torch 'keras>=3', and set KERAS_BACKEND=torch before Keras is imported; a model that was "
    "saved as .keras loads there as well"
)


def check_model(model: "keras.Model") -> None:
    """Refuse what an artifact would train differently from Keras.

    Raises:
        ArtifactError: several inputs or outputs, sizes that are not fixed, a layer that works otherwise in
            training, a regularizer or a constraint; the message names it.
    """
    keras = import_keras()
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ArtifactError(f"not a Keras 3 model: {kind}", hint="save it as .keras and load it in Keras 3")
    if not model.built or not getattr(model, "inputs", None):
        raise ArtifactError(
            f"the model {model.name!r} does not say what its input is",
            hint="keras.Sequential([keras.Input((6,)), model]) says it for a model of 6 numbers",
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ArtifactError(
            f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs, not one of each",
            hint="keras.Model(input, logits) of one of them; cut one input up inside the model",
        )
    if None in model.inputs[0].shape[1:]:
        raise ArtifactError(
            f"the model's input has the shape {list(model.inputs[0].shape)}",
            hint="fix every size but the first in keras.Input",
        )
    paths = Counter(variable.path for variable in model.variables)
    twice = next((path for path, count in paths.items() if count > 1), None)
    if twice is not None:
        raise ArtifactError(f"two weights have the path {twice!r}", hint="give the layers names of their own")
    for layer in _layers(model):
        _check_layer(layer)
    if model.losses:
        raise ArtifactError(
            "the model adds regularizers to its loss, which an artifact would leave out",
            hint="build it without them; optimizer='adamw' has weight decay",
        )


def _check_layer(layer: Any) -> None:
    where = f"layer {layer.name!r} ({type(layer).__name__})"
    if layer.compute_dtype != "float32":
        raise ArtifactError(
            f"{where} computes in {layer.compute_dtype}", hint="keras.config.set_dtype_policy('float32')"
        )
    if type(layer).__name__.startswith(_ONLY_IN_TRAINING):
        raise ArtifactError(
            f"{where} works in training alone, and not as a graph", hint="leave it out, or use Dropout"
        )
    inner = [name for name in ("dropout", "recurrent_dropout") if _rate(layer, name)]
    if hasattr(layer, "recurrent_dropout") and inner:
        raise ArtifactError(
            f"{where} has {inner[0]}={_rate(layer, inner[0])}", hint="use a Dropout layer before or after it"
        )
    if getattr(layer, "noise_shape", None) is not None:
        raise ArtifactError(f"{where} has a noise_shape", hint="use Dropout without one")
    if getattr(layer, "renorm", False) or getattr(layer, "stateful", False):
        raise ArtifactError(f"{where} is renorm or stateful", hint="build the layer without")
    bound = next((it.path for it in layer.variables if getattr(it, "constraint", None)), None)
    if bound is not None:
        raise ArtifactError(f"{bound} has a constraint, which an artifact would leave out", hint="remove it")


def _rate(layer: Any, name: str) -> float:
    rate = getattr(layer, name, 0.0)
    return float(rate) if isinstance(rate, int | float) else 0.0


def running_statistics(model: "keras.Model") -> set[str]:
    """The paths of the moving statistics that training would move."""
    normalisations = _normalisations(model)
    return {it.path for layer in normalisations for it in (layer.moving_mean, layer.moving_variance)}


def module_of(model: "keras.Model") -> "torch.nn.Module":
    """A module that computes what ``model`` infers, with a parameter for each float variable, by its path."""
    nn = import_torch().nn

    class Stateless(nn.Module):  # type: ignore[misc, name-defined] # a class of PyTorch's, which may not be here
        def __init__(self) -> None:
            super().__init__()
            trained = {id(variable) for variable in model.trainable_variables}
            for variable in model.variables:
                if variable.dtype == "float32":
                    copy = variable.value.detach().cpu().clone()
                    tensor = nn.Parameter(copy, requires_grad=id(variable) in trained)
                    self.register_parameter(variable.path, tensor)

        def forward(self, x: Any) -> Any:
            values = [
                [self._parameters.get(variable.path, variable.value) for variable in variables]
                for variables in (model.trainable_variables, model.non_trainable_variables)
            ]
            return model.stateless_call(*values, x, training=False)[0]

    return Stateless()


@contextlib.contextmanager
def as_nodes(model: "keras.Model") -> Iterator[None]:
    """While it lasts, batch normalisation and dropout are the functions that become nodes of their own."""
    keras = import_keras()
    calls: list[tuple[Any, Callable[..., Any]]] = [(it, _normalise(it)) for it in _normalisations(model)]
    calls += [(it, _drop(it.rate)) for it in _layers(model) if isinstance(it, keras.layers.Dropout)]
    for layer, call in calls:
        object.__setattr__(layer, "call", call)  # past Keras' and PyTorch's own book-keeping
    try:
        yield
    finally:
        for layer, _ in calls:
            object.__delattr__(layer, "call")


def _normalise(layer: Any) -> Callable[..., Any]:
    torch, keras = import_torch(), import_keras()

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        mean, variance = (
            keras.ops.convert_to_tensor(it) for it in (layer.moving_mean, layer.moving_variance)
        )
        scale = keras.ops.convert_to_tensor(layer.gamma) if layer.scale else torch.ones(len(mean))
        offset = keras.ops.convert_to_tensor(layer.beta) if layer.center else torch.zeros(len(mean))
        normal = torch.nn.functional.batch_norm(
            torch.movedim(inputs, layer.axis, 1),
            mean,
            variance,
            scale,
            offset,
            training=False,
            momentum=1 - layer.momentum,
            eps=layer.epsilon,
        )
        return torch.movedim(normal, 1, layer.axis)

    return call


def _drop(rate: float) -> Callable[..., Any]:
    torch = import_torch()
    return lambda inputs, training=False: torch.nn.functional.dropout(inputs, rate, training=True)


def _normalisations(model: Any) -> list[Any]:
    """The batch normalisations that are trained; Keras lets the others infer."""
    kind = import_keras().layers.BatchNormalization
    return [layer for layer in _layers(model) if isinstance(layer, kind) and layer.trainable]


def _layers(model: Any) -> list[Any]:
    """Every layer, those inside of others included."""
    return list(model._flatten_layers(include_self=False, recursive=True))
