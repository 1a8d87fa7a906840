"""Losses and metrics: nodes that turn the model's output and the labels into one number per row.

They are ordinary forward nodes, differentiated by the same rules as the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from onnx import TensorProto

from fl_protocol.errors import ArtifactError
from models.build.graph import BATCH, Dim, WorkingGraph, attribute, described

__all__ = ["LOSSES", "METRICS", "Loss", "Metric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss: ``rows(graph, output, y)`` gives float[batch]; ``label`` is the dtype of ``y``.

    ``label_shape`` maps the output's shape to that of ``y``.
    """

    label: int
    label_shape: Callable[[tuple[Dim, ...]], tuple[Dim, ...]]
    rows: Callable[[WorkingGraph, str, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric: ``rows(graph, output, y)`` gives float[batch], summed under the name ``total``."""

    total: str
    rows: Callable[[WorkingGraph, str, str], str]


def _softmax_cross_entropy(graph: WorkingGraph, output: str, y: str) -> str:
    """``-log softmax(logits)[y]``; a Softmax that already ends the model is not applied twice."""
    classes = graph.shape(output)[-1]
    logs = graph.op("LogSoftmax", _logits(graph, output), axis=-1)
    chosen = graph.op("OneHot", y, graph.constant(classes, np.int32), graph.constant([0.0, 1.0]), axis=-1)
    picked = graph.op("ReduceSum", graph.op("Mul", logs, chosen), graph.integers(-1), keepdims=0)
    return graph.op("Neg", picked)


def _logits(graph: WorkingGraph, output: str) -> str:
    last = graph.producer(output)
    ends_in_softmax = last is not None and last.op_type == "Softmax"
    if last is None or not ends_in_softmax:
        return output
    if attribute(last, "axis", -1) not in (-1, len(graph.shape(output)) - 1):
        raise ArtifactError(f"{described(last)} goes along another axis than the classes")
    return str(last.input[0])


def _class_labels(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    if len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 2:
        raise ArtifactError(
            f"softmax_cross_entropy needs an output of [batch, classes], the model's is {list(shape)}",
            hint="two classes at least; one logit per class",
        )
    return (BATCH,)


def _correct(graph: WorkingGraph, output: str, y: str) -> str:
    _class_labels(graph.shape(output))
    guess = graph.op("Cast", graph.op("ArgMax", output, axis=-1, keepdims=0), to=TensorProto.INT32)
    return graph.op("Cast", graph.op("Equal", guess, y), to=graph.float_element)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "softmax_cross_entropy": Loss(
            label=TensorProto.INT32, label_shape=_class_labels, rows=_softmax_cross_entropy
        )
    }
)
"""Every loss by its name."""

METRICS: Mapping[str, Metric] = MappingProxyType({"accuracy": Metric(total="correct", rows=_correct)})
"""Every metric by its name."""
