"""Multi-layer perceptrons as forward ONNX graphs, and the one for the digits as an artifact."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from models.runtime.artifact import TrainingArtifact
from models.zoo.forward import Network

__all__ = ["digits_artifact", "mlp"]


def mlp(
    widths: Sequence[int], *, seed: int = 0, name: str = "mlp", activation: str = "Relu"
) -> onnx.ModelProto:
    """A forward graph ``x[batch, widths[0]] -> logits[batch, widths[-1]]``.

    Linear layers named ``layer1.weight`` (float32[out, in]), ``layer1.bias`` and so on, with
    ``activation`` (an ONNX operator) between them. Weights are drawn uniformly within
    ``sqrt(6 / fan_in)`` (He et al., 2015), biases are zero; the same seed gives the same bytes on every
    machine.
    """
    net = Network(name, widths[:1], seed=seed)
    value = net.x
    for layer, width in enumerate(widths[1:], 1):
        value = net.linear(f"layer{layer}", value, width)
        if layer < len(widths) - 1:
            value = net.activation(activation, f"active{layer}", value)
    return net.finish(value, output="logits")


def digits_artifact(
    out: Path | str | None = None, *, hidden: int = 32, seed: int = 0, runtimes: Sequence[str] = ("onnx",)
) -> TrainingArtifact:
    """Build the artifact of the 64-``hidden``-10 MLP (2,410 parameters at 32, 76,810 at 1024).

    ``runtimes`` are those of ``build_artifact``.

    Raises:
        StorageError: the folder ``out`` cannot be written.
    """
    from models.build import build_artifact

    return build_artifact(
        mlp((64, hidden, 10), seed=seed, name="digits"),
        loss="softmax_cross_entropy",
        out=out,
        runtimes=runtimes,
        expect_params=(64 + 1) * hidden + (hidden + 1) * 10,
        class_names=[str(digit) for digit in range(10)],
        normalisation={"scale": 1 / 16},
    )
