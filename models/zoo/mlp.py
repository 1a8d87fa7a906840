"""Multi-layer perceptrons as forward ONNX graphs, and the one for the digits as an artifact."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.runtime.artifact import TrainingArtifact

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
    bits = np.random.PCG64(seed)
    nodes, initializers, value = [], [], "x"
    last = len(widths) - 1
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), 1):
        weight, bias = f"layer{layer}.weight", f"layer{layer}.bias"
        initializers.append(numpy_helper.from_array(_he_uniform(bits, fan_out, fan_in), weight))
        initializers.append(numpy_helper.from_array(np.zeros(fan_out, np.float32), bias))
        linear = "logits" if layer == last else f"linear{layer}"
        nodes.append(
            helper.make_node("Gemm", [value, weight, bias], [linear], name=f"layer{layer}", transB=1)
        )
        value = linear
        if layer < last:
            value = f"active{layer}"
            nodes.append(helper.make_node(activation, [linear], [value], name=value))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", widths[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", widths[-1]])],
        initializers,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="lichen"
    )


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


def _he_uniform(bits: np.random.PCG64, fan_out: int, fan_in: int) -> NDArray[np.float32]:
    raw = bits.random_raw(fan_out * fan_in)
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    weights: NDArray[np.float32] = ((2 * unit - 1) * math.sqrt(6 / fan_in)).astype(np.float32)
    return weights.reshape(fan_out, fan_in)
