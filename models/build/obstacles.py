"""Nodes that stand in the way of training, each with what to do about it."""

from collections.abc import Mapping
from types import MappingProxyType

import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import described

__all__ = ["foreign", "nested", "unsupported"]

_OTHERS = (
    "write the model with the operators of docs/operators.md, or cut the graph in front of this node; "
    "`lichen models inspect` lists every node in the way"
)
_KINDS: Mapping[str, tuple[tuple[str, ...], str, str]] = MappingProxyType(
    {
        "shape": (
            ("Compress", "NonMaxSuppression", "NonZero", "Unique"),
            "how much comes out of it depends on the data, and a training graph has fixed sizes",
            "multiply by a mask or choose with Where, or do that part before the model",
        ),
        "quantized": (
            ("ConvInteger", "Dequantize", "DynamicQuantize", "MatMulInteger", "QLinear", "Quantize"),
            "the model is quantized, and whole numbers have no gradient",
            "give the float32 model, as it was before it was quantized",
        ),
        "random": (
            ("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"),
            "it draws random numbers, and every runtime would draw others",
            "leave the noise out; Dropout alone is random in training, by a seed",
        ),
    }
)
"""Of each kind: how its operators' names begin, what is wrong, and what to do."""


def unsupported(node: onnx.NodeProto) -> ArtifactError:
    """Why a node cannot be trained, where the operator has neither a kernel nor a lowering."""
    for names, reason, hint in _KINDS.values():
        if node.op_type.startswith(names):
            return ArtifactError(f"{described(node)}: {reason}", hint=hint)
    return ArtifactError(f"{described(node)}: the operator is not supported", hint=_OTHERS)


def foreign(node: onnx.NodeProto) -> ArtifactError:
    """Why a node of another operator domain is refused."""
    hint = "export with standard operators only, or cut the graph in front of this node"
    if node.domain.startswith("com.microsoft"):
        hint = "give the model as it was exported, before ONNX Runtime optimised it for one machine"
    return ArtifactError(f"{described(node)} is of the foreign operator domain {node.domain!r}", hint=hint)


def nested(node: onnx.NodeProto) -> ArtifactError:
    """Why a node with a graph of its own is refused."""
    if node.op_type == "If":
        return ArtifactError(
            f"{described(node)} chooses between two graphs by the data",
            hint="export the branch that trains, or compute both and choose with Where",
        )
    return ArtifactError(
        f"{described(node)} runs a graph a number of times that is known only as it runs",
        hint="unroll it over a fixed number of steps (in Keras: unroll=True, or lichen.from_keras); nodes "
        "GRU, LSTM and RNN need not be",
    )
