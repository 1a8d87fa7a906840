"""The lowering of Reshape: every size spelt out, so that the shape of the result is known."""

import math

import onnx

from models.build.graph import Dim, WorkingGraph, attribute, batch_factor, batch_times
from models.build.lowering import lowering

__all__: list[str] = []


@lowering("Reshape")
def _reshape(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """One dimension holds the batch, alone or with something folded into it; all others are numbers."""
    x, output = str(node.input[0]), str(node.output[0])
    source, target = graph.known_shape(x), _target(graph, node)
    if source is None or target is None:
        return None
    shape = _solved(source, target)
    if shape is None:
        return None
    wanted = graph.integers(*(_spelt(dim, axis, source) for axis, dim in enumerate(shape)))
    value = output if wanted == node.input[1] else graph.op("Reshape", x, wanted)
    graph.know(value, shape, like=x)
    return None if value == output else value


def _spelt(dim: Dim, axis: int, source: tuple[Dim, ...]) -> int:
    if isinstance(dim, int):
        return dim
    return 0 if axis < len(source) and source[axis] == dim else -1


def _solved(source: tuple[Dim, ...], target: list[Dim]) -> list[Dim] | None:
    """The target with its one unknown (``None``) found out; ``None`` where it cannot be."""
    there, here = ([batch_factor(dim) for dim in dims if isinstance(dim, str)] for dims in (source, target))
    unknown = target.count(None)
    if len(there) != 1 or len(here) + unknown not in (1, 2) or len(here) > 1 or unknown > 1:
        return None
    numbers = (math.prod(dim for dim in dims if isinstance(dim, int)) for dims in (source, target))
    count, size = (
        number * math.prod(factor or 1 for factor in factors)
        for number, factors in zip(numbers, (there, here), strict=True)
    )
    if not size or count % size or (not unknown and count != size):
        return None
    found: Dim = count // size if here else batch_times(count // size)
    return [found if dim is None else dim for dim in target]


def _target(graph: WorkingGraph, node: onnx.NodeProto) -> list[Dim] | None:
    """The wanted shape, ``None`` where a size is to be found out."""
    constant = graph.constants.get(node.input[1])
    given = graph.entries.get(node.input[1]) if constant is None else constant
    dims: list[Dim] = [] if given is None else given.tolist()
    if given is not None and (not attribute(node, "allowzero", 0) or 0 not in dims):
        source = graph.known_shape(node.input[0]) or ()
        if any(dim == 0 and axis >= len(source) for axis, dim in enumerate(dims)):
            return None
        return [source[axis] if dim == 0 else None if dim == -1 else dim for axis, dim in enumerate(dims)]
    # A target computed otherwise: inference has followed it where it could.
    inferred = graph.partial_shape(node.output[0])
    return None if inferred is None else list(inferred)
