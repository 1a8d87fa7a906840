"""The lowering of Einsum: transposed, folded to matrices, multiplied, unfolded again."""

import math
from collections.abc import Mapping, Sequence

import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import Dim, WorkingGraph, attribute, batch_factor, batch_times, described
from models.build.lowering import lowering

__all__: list[str] = []


@lowering("Einsum")
def _einsum(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """Of one or two operands whose letters each stand for one dimension, as attention is written."""
    equation = attribute(node, "equation").decode().replace(" ", "")
    terms, arrow, output = equation.partition("->")
    operands = terms.split(",")
    names = [str(name) for name in node.input]
    if not arrow or "." in equation or len(operands) != len(names) or len(names) > 2:
        raise _refused(node, equation)
    sizes: dict[str, Dim] = {}
    for letters, name in zip(operands, names, strict=True):
        if len(set(letters)) < len(letters):
            raise _refused(node, equation)
        sizes.update(zip(letters, graph.shape(name), strict=True))
    if len(operands) == 1:
        summed, letters = _without(graph, names[0], operands[0], set(output))
        return _arranged(graph, summed, letters, output)
    (x, left), (y, right) = (
        _without(graph, name, letters, set(output) | set(other))
        for name, letters, other in zip(names, operands, reversed(operands), strict=True)
    )
    both = [letter for letter in left if letter in right]
    if any(isinstance(sizes[letter], str) for letter in right if letter not in both):
        x, left, y, right = y, right, x, left
    kept, inner = [it for it in both if it in output], [it for it in both if it not in output]
    rows, columns = ([it for it in letters if it not in both] for letters in (left, right))
    # Beside a single matrix, rows stay in dimensions of their own: inference loses a batch that was folded.
    row_groups = [rows] if kept or not rows else [[letter] for letter in rows]
    x = _grouped(graph, _arranged(graph, x, left, [*kept, *rows, *inner]), sizes, kept, [*row_groups, inner])
    y = _grouped(graph, _arranged(graph, y, right, [*kept, *inner, *columns]), sizes, kept, [inner, columns])
    product = graph.op("MatMul", x, y)
    folded = [*(sizes[it] for it in kept), *(_product(sizes, group) for group in (*row_groups, columns))]
    order = [*kept, *rows, *columns]
    return _arranged(graph, _reshaped(graph, product, folded, [sizes[it] for it in order]), order, output)


def _without(graph: WorkingGraph, x: str, letters: str, wanted: set[str]) -> tuple[str, str]:
    """``x`` summed over the letters that nothing else has, and the letters that are left."""
    axes = [axis for axis, letter in enumerate(letters) if letter not in wanted]
    if not axes:
        return x, letters
    summed = graph.op("ReduceSum", x, graph.integers(*axes), keepdims=0)
    return summed, "".join(letter for letter in letters if letter in wanted)


def _arranged(graph: WorkingGraph, x: str, letters: Sequence[str], wanted: Sequence[str]) -> str:
    order = [list(letters).index(letter) for letter in wanted]
    return x if order == sorted(order) else graph.op("Transpose", x, perm=order)


def _grouped(
    graph: WorkingGraph, x: str, sizes: Mapping[str, Dim], kept: list[str], groups: list[list[str]]
) -> str:
    """``x`` [kept..., letters of all groups...] with each group folded into one dimension."""
    source = [sizes[letter] for letter in (*kept, *(letter for group in groups for letter in group))]
    wanted = [*(sizes[letter] for letter in kept), *(_product(sizes, group) for group in groups)]
    return _reshaped(graph, x, source, wanted)


def _product(sizes: Mapping[str, Dim], letters: Sequence[str]) -> Dim:
    factors = [sizes[letter] for letter in letters]
    number = math.prod(dim for dim in factors if isinstance(dim, int))
    batch = [batch_factor(dim) for dim in factors if isinstance(dim, str)]
    return batch_times(number * (batch[0] or 1)) if batch else number


def _reshaped(graph: WorkingGraph, x: str, source: Sequence[Dim], wanted: Sequence[Dim]) -> str:
    if list(source) == list(wanted):
        return x
    spelt = [
        dim if isinstance(dim, int) else 0 if axis < len(source) and source[axis] == dim else -1
        for axis, dim in enumerate(wanted)
    ]
    return graph.op("Reshape", x, graph.integers(*spelt))


def _refused(node: onnx.NodeProto, equation: str) -> ArtifactError:
    return ArtifactError(
        f"{described(node)}: the equation {equation!r} is not supported",
        hint="write it with one or two operands, an arrow, and each letter once in an operand",
    )
