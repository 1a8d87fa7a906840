"""``from_keras``: a Keras 3 model becomes a training artifact."""

import glob
import math
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.build.agreement import check_same_gradients, check_same_output
from models.build.build_options import BuildOptions
from models.build.builder import build_artifact
from models.build.keras_export import as_nodes, check_model, import_keras, module_of, running_statistics
from models.build.torch_export import export_module, import_torch
from models.build.torch_gradients import gradients_of
from models.runtime.artifact import TrainingArtifact

if TYPE_CHECKING:
    import keras

__all__ = ["from_keras"]

_ROWS = 3


def from_keras(model: "keras.Model", *, loss: str, **options: Unpack[BuildOptions]) -> TrainingArtifact:
    """Build a training artifact of a built Keras model; ``artifact.save(folder)`` or ``out=`` writes it.

    Keras must run on PyTorch (``KERAS_BACKEND=torch``): what it exports on TensorFlow no longer holds the
    model's parameters. Weights keep Keras' paths (``sequential/dense/kernel``); those that Keras does not
    train are frozen unless ``train`` says otherwise. ``Dropout`` and ``BatchNormalization`` work in training;
    the moving variance then takes up the unbiased variance, where Keras takes the biased one. A softmax
    at the end may stay: the loss is that of the logits before it. ``options`` are those of
    ``build_artifact``. The model is not changed, and what was built computes what ``model(x)`` computes.

    Raises:
        ArtifactError: the model cannot be exported or trained; the message says what stands in the way.
        RuntimeUnavailable: Keras or PyTorch is not installed, or Keras runs on something else.
    """
    keras, torch = import_keras(), import_torch()
    check_model(model)
    x = _rows(model)
    with keras.device("cpu"):
        module = module_of(model)
        with as_nodes(model):
            exported = export_module(module, torch.from_numpy(x))
        with torch.no_grad():
            theirs = module(torch.from_numpy(x)).numpy()
    used = {name for node in exported.graph.node for name in node.input}
    sizes = {name: tensor.numel() for name, tensor in module.named_parameters()}
    lost = sorted(sizes.keys() - used)
    if lost:
        raise ArtifactError(
            f"the output does not depend on {len(lost)} of the model's weights: {', '.join(lost[:5])}",
            hint="leave out the layers whose result is not used",
        )
    statistics = running_statistics(model)
    trainable = [variable.path for variable in model.trainable_variables]
    if options.get("train") is None and sizes.keys() - statistics - set(trainable):
        options["train"] = [glob.escape(path) for path in trainable]
    options["name"] = options.get("name") or model.name
    out = options.pop("out", None)
    artifact = build_artifact(
        exported,
        loss=loss,
        parameters=[glob.escape(name) for name in sizes],
        expect_params=sum(size for name, size in sizes.items() if name not in statistics),
        **options,
    )
    check_same_output(artifact, x, theirs, "model(x)")
    with keras.device("cpu"):
        check_same_gradients(artifact, x, gradients_of(module, torch.from_numpy(x)), "Keras")
    return artifact if out is None else artifact.save(out)


def _rows(model: Any) -> NDArray[Any]:
    """A few rows of input: float32[rows, ...] of all sizes, or int64 ids that every table has."""
    entry = model.inputs[0]
    shape = (_ROWS, *entry.shape[1:])
    if "int" in str(entry.dtype):
        return np.zeros(shape, np.int64)
    numbers: NDArray[Any] = np.random.default_rng(5).standard_normal(math.prod(shape)).reshape(shape)
    return numbers.astype(np.float32)
