"""Metrics: nodes that turn the model's output and the labels into one number per row, to be summed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnx import TensorProto

from fl_protocol.errors import ArtifactError
from models.build.graph import WorkingGraph
from models.build.losses import class_labels, logits, mean_over_row, picked

__all__ = ["METRICS", "Metric"]

_MOST_PLACES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric: ``rows(graph, output, y)`` gives float[batch], summed under the name ``total``."""

    total: str
    rows: Callable[[WorkingGraph, str, str], str]


def _correct(graph: WorkingGraph, output: str, y: str) -> str:
    """1 where the row's class is the likeliest; of yes-or-no outputs the share that is right."""
    if graph.types[y] == TensorProto.INT32:
        class_labels(graph.shape(output))
        guess = graph.op("Cast", graph.op("ArgMax", output, axis=-1, keepdims=0), to=TensorProto.INT32)
        return graph.op("Cast", graph.op("Equal", guess, y), to=graph.float_element)
    guess = graph.op("Greater", logits(graph, output, "Sigmoid"), graph.constant(0))
    truth = graph.op("Greater", y, graph.constant(0.5))
    both = (graph.op("Cast", side, to=graph.float_element) for side in (guess, truth))
    wrong = graph.op("Abs", graph.op("Sub", *both))
    return graph.op("Sub", graph.constant(1), mean_over_row(graph, output, wrong))


def _top(places: int) -> Metric:
    """1 where fewer than ``places`` other classes are likelier than the row's own."""

    def rows(graph: WorkingGraph, output: str, y: str) -> str:
        if graph.types[y] != TensorProto.INT32:
            raise ArtifactError(f"top{places} needs classes as labels", hint="with softmax_cross_entropy")
        class_labels(graph.shape(output))
        own = graph.op("Unsqueeze", picked(graph, output, graph.shape(output)[-1], y), graph.integers(-1))
        ahead = graph.op("Cast", graph.op("Greater", output, own), to=graph.float_element)
        count = graph.op("ReduceSum", ahead, graph.integers(-1), keepdims=0)
        return graph.op("Cast", graph.op("Less", count, graph.constant(places)), to=graph.float_element)

    return Metric(total=f"top{places}", rows=rows)


def _absolute_error(graph: WorkingGraph, output: str, y: str) -> str:
    """The absolute error, its mean over a row's outputs."""
    if graph.types[y] == TensorProto.INT32:
        raise ArtifactError("mae needs numbers as labels, not classes", hint="with mse or huber")
    return mean_over_row(graph, output, graph.op("Abs", graph.op("Sub", output, y)))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric(total="correct", rows=_correct),
        "mae": Metric(total="absolute_error", rows=_absolute_error),
        **{f"top{places}": _top(places) for places in range(2, _MOST_PLACES + 1)},
    }
)
"""Every metric by its name."""
