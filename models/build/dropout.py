"""Dropout: some units are left out of a training step, others counted for more; inference leaves out none.

Srivastava et al.: Dropout (2014). Which ones is decided by the input ``seed`` of the step graph: the same
seed drops the same units in every runtime, and a row's do not depend on the rows beside it.
"""

import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import BATCH, WorkingGraph, attribute, described
from models.build.uniform import SEEDS, uniform

__all__ = ["in_mode"]

_RATIO = 0.5


def in_mode(graph: WorkingGraph, node: onnx.NodeProto, training: bool) -> tuple[str, ...]:
    """The value itself, or in training with each unit at 0 or divided by the probability to stay.

    Raises:
        ArtifactError: the ratio is computed, or not in [0, 1); or several dimensions are not fixed.
    """
    x, ratio = str(node.input[0]), _ratio(graph, node)
    if not training or ratio == 0:
        return (x,)
    shape = graph.shape(x)
    free = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    if len(free) > 1:
        raise ArtifactError(
            f"{described(node)}: the sizes {list(shape)} must be fixed but for one",
            hint="export the model with fixed sizes in every dimension but the batch",
        )
    stream = node.output[0].removeprefix("fwd.")
    draw = uniform(graph, shape, _count(graph, x, free[0]) if free else None, stream=stream)
    # As the draws are multiples of 1 / SEEDS, this threshold is the ratio as exactly as they can have it.
    drops = graph.op("Less", draw, graph.constant(round(ratio * SEEDS) / SEEDS))
    factor = graph.op("Where", drops, graph.constant(0), graph.constant(1 / (1 - ratio)))
    return (graph.op("Mul", x, factor),)


def _ratio(graph: WorkingGraph, node: onnx.NodeProto) -> float:
    ratio = attribute(node, "ratio", _RATIO)
    if len(node.input) > 1 and node.input[1]:
        constant = graph.constants.get(node.input[1])
        if constant is None:
            raise ArtifactError(
                f"{described(node)}: its ratio is computed", hint="export the model with a constant ratio"
            )
        ratio = float(constant.reshape(()))
    if not 0 <= ratio < 1:
        raise ArtifactError(f"{described(node)}: a ratio of {ratio:g} leaves nothing", hint="below 1")
    return float(ratio)


def _count(graph: WorkingGraph, x: str, axis: int) -> str:
    """The size of the free dimension: float[]. Where it is the batch, all layers of a graph share it."""
    if graph.shape(x)[axis] == BATCH:
        x, axis = graph.input("sample_weight", [BATCH]), 0
    size = graph.op("Squeeze", graph.op("Shape", x, start=axis, end=axis + 1), graph.integers(0))
    return graph.op("Cast", size, to=graph.float_element)
