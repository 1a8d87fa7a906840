"""Losses: nodes that turn the model's output and the labels into one number per row.

They are ordinary forward nodes, differentiated by the same rules as the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from onnx import TensorProto

from fl_protocol.errors import ArtifactError
from models.build.graph import BATCH, Dim, WorkingGraph, attribute, described
from models.build.lower_activation import softplus

__all__ = ["LOSSES", "Loss", "class_labels", "logits", "mean_over_row", "picked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss: ``rows(graph, output, y)`` gives float[batch]; ``label`` is the dtype of ``y``.

    ``label_shape`` maps the output's shape to that of ``y``; ``metrics`` are those that go with it where
    nobody names any.
    """

    label: int
    label_shape: Callable[[tuple[Dim, ...]], tuple[Dim, ...]]
    rows: Callable[[WorkingGraph, str, str], str]
    metrics: tuple[str, ...]


def _softmax_cross_entropy(graph: WorkingGraph, output: str, y: str) -> str:
    """``-log softmax(logits)[y]``; a Softmax that already ends the model is not applied twice."""
    logs = graph.op("LogSoftmax", logits(graph, output, "Softmax"), axis=-1)
    return graph.op("Neg", picked(graph, logs, graph.shape(output)[-1], y))


def _sigmoid_cross_entropy(graph: WorkingGraph, output: str, y: str) -> str:
    """``-y log p - (1 - y) log(1 - p)`` with ``p = sigmoid(logit)``, the mean over a row's outputs.

    ``y`` is 0, 1 or between; a Sigmoid that already ends the model is not applied twice.
    """
    logit = logits(graph, output, "Sigmoid")
    return mean_over_row(graph, output, graph.op("Sub", softplus(graph, logit), graph.op("Mul", logit, y)))


def _mse(graph: WorkingGraph, output: str, y: str) -> str:
    """The squared error, its mean over a row's outputs."""
    error = graph.op("Sub", output, y)
    return mean_over_row(graph, output, graph.op("Mul", error, error))


def _huber(graph: WorkingGraph, output: str, y: str) -> str:
    """Half the squared error up to 1, linear beyond (Huber, 1964), the mean over a row's outputs."""
    size = graph.op("Abs", graph.op("Sub", output, y))
    near = graph.op("Min", size, graph.constant(1))
    # near * (size - near / 2): half a square below 1, size - 1/2 above.
    half = graph.op("Mul", near, graph.constant(0.5))
    return mean_over_row(graph, output, graph.op("Mul", near, graph.op("Sub", size, half)))


def logits(graph: WorkingGraph, output: str, activation: str) -> str:
    """What goes into the activation that ends the model, or the output where another operator does.

    Raises:
        ArtifactError: a Softmax along another axis than the last.
    """
    last = graph.producer(output)
    if last is None or last.op_type != activation:
        return output
    if activation == "Softmax" and attribute(last, "axis", -1) not in (-1, len(graph.shape(output)) - 1):
        raise ArtifactError(f"{described(last)} goes along another axis than the classes")
    return str(last.input[0])


def picked(graph: WorkingGraph, values: str, classes: Dim, y: str) -> str:
    """The value of each row's own class: float[batch]."""
    chosen = graph.op("OneHot", y, graph.constant(classes, np.int32), graph.constant([0.0, 1.0]), axis=-1)
    return graph.op("ReduceSum", graph.op("Mul", values, chosen), graph.integers(-1), keepdims=0)


def mean_over_row(graph: WorkingGraph, output: str, values: str) -> str:
    """The mean over all dimensions but the batch; ``values`` has the shape of ``output``."""
    axes = range(1, len(graph.shape(output)))
    return graph.op("ReduceMean", values, graph.integers(*axes), keepdims=0) if axes else values


def class_labels(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of integer labels, one per row.

    Raises:
        ArtifactError: the output is not [batch, classes].
    """
    if len(shape) != 2 or not isinstance(shape[1], int) or shape[1] < 2:
        raise ArtifactError(
            f"softmax_cross_entropy needs an output of [batch, classes], the model's is {list(shape)}",
            hint="two classes at least; one logit per class",
        )
    return (BATCH,)


def _same_shape(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return shape


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "softmax_cross_entropy": Loss(
            label=TensorProto.INT32,
            label_shape=class_labels,
            rows=_softmax_cross_entropy,
            metrics=("accuracy",),
        ),
        "sigmoid_cross_entropy": Loss(
            label=TensorProto.FLOAT,
            label_shape=_same_shape,
            rows=_sigmoid_cross_entropy,
            metrics=("accuracy",),
        ),
        "mse": Loss(label=TensorProto.FLOAT, label_shape=_same_shape, rows=_mse, metrics=("mae",)),
        "huber": Loss(label=TensorProto.FLOAT, label_shape=_same_shape, rows=_huber, metrics=("mae",)),
    }
)
"""Every loss by its name."""
