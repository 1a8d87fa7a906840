"""What happens to gradients between the backward pass and the optimizer."""

import math
from collections.abc import Mapping

from models.build.graph import WorkingGraph
from models.runtime.session import CORRECTION

__all__ = ["add_correction", "clip_by_global_norm", "pull_to_anchor"]

_TINY = 1e-12
_LONG_SUM = 1 << 16
"""A float32 sum of more values than this, one after another, is off by more than a runtime may be."""


def clip_by_global_norm(
    graph: WorkingGraph, gradients: Mapping[str, str], limit: str
) -> tuple[dict[str, str], str]:
    """Scale all gradients so that their common norm is at most ``limit``; 0 or less does not clip.

    Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks (2013), section 3.2.
    Returns the gradients and the norm before clipping.
    """
    squares = [_sum_of_squares(graph, gradient) for gradient in gradients.values()]
    norm = graph.op("Sqrt", graph.op("Sum", *squares) if len(squares) > 1 else squares[0])
    one = graph.constant(1)
    ratio = graph.op("Div", limit, graph.op("Max", norm, graph.constant(_TINY)))
    clips = graph.op("Greater", limit, graph.constant(0))
    scale = graph.op("Where", clips, graph.op("Min", ratio, one), one)
    return {name: graph.op("Mul", gradient, scale) for name, gradient in gradients.items()}, norm


def _sum_of_squares(graph: WorkingGraph, value: str) -> str:
    squares = graph.op("Mul", value, value)
    sizes = [size for size in graph.shape(value) if isinstance(size, int)]
    if len(sizes) > 1 and math.prod(sizes) > _LONG_SUM:
        squares = graph.op("ReduceSum", squares, graph.integers(sizes.index(max(sizes))), keepdims=0)
    return graph.op("ReduceSum", squares, keepdims=0)


def pull_to_anchor(
    graph: WorkingGraph, gradients: Mapping[str, str], weights: Mapping[str, str], anchors: Mapping[str, str]
) -> dict[str, str]:
    """Add the gradient of ``mu / 2 * |w - anchor|^2`` to the gradients that have an anchor: FedProx.

    Li et al.: Federated Optimization in Heterogeneous Networks (2020). Added after clipping, so that the
    limit bounds what the data can do and not the pull back.
    """
    return {
        name: graph.op("Add", gradients[name], graph.op("Mul", "mu", graph.op("Sub", weights[name], anchor)))
        for name, anchor in anchors.items()
    }


def add_correction(
    graph: WorkingGraph, gradients: Mapping[str, str], corrections: Mapping[str, str]
) -> dict[str, str]:
    """Add ``correction`` times a tensor to the gradients that have one: SCAFFOLD's ``c - c_i``.

    Karimireddy et al.: SCAFFOLD (2020), algorithm 1. After clipping, as the pull to the anchor.
    """
    return {
        name: graph.op("Add", gradients[name], graph.op("Mul", CORRECTION, given))
        for name, given in corrections.items()
    }
