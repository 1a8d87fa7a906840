"""Gradient rules: one small function per operator, found through one table.

A rule is given a node and the gradient of the loss with respect to the node's output, adds nodes to the
graph and returns one gradient per input (``None`` where an input has none). Nodes that nobody needs in
the end are dropped, so a rule does not ask which of its gradients are wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import Dim, WorkingGraph, attribute, described

__all__ = ["RULES", "Gradients", "Rule", "Site"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A node seen from behind: ``dy`` is the gradient of its output ``y``."""

    graph: WorkingGraph
    node: onnx.NodeProto
    dy: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """The values the node reads."""
        return tuple(self.node.input)

    @property
    def x(self) -> str:
        """The first value the node reads."""
        return str(self.node.input[0])

    @property
    def y(self) -> str:
        """The value the node computes."""
        return str(self.node.output[0])

    def attribute(self, name: str, default: Any = None) -> Any:
        """A node's attribute."""
        return attribute(self.node, name, default)

    def shape(self, value: str) -> tuple[Dim, ...]:
        """The shape of a value; see ``WorkingGraph.shape``."""
        return self.graph.shape(value)

    def summed_to(self, gradient: str, value: str) -> str:
        """Undo broadcasting: sum a gradient of the output's shape over what ``value`` was repeated along."""
        return summed_to(self.graph, gradient, self.shape(self.y), self.shape(value))

    def refuse(self, why: str, hint: str) -> ArtifactError:
        """An error that names this node."""
        return ArtifactError(f"{described(self.node)}: {why}", hint=hint)


Gradients: TypeAlias = tuple[str | None, ...]
Rule: TypeAlias = Callable[[Site], Gradients]

RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Enter a function into the table."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return enter


def summed_to(graph: WorkingGraph, gradient: str, wide: tuple[Dim, ...], narrow: tuple[Dim, ...]) -> str:
    """Sum ``gradient``, whose shape is ``wide``, to the shape ``narrow`` that was broadcast to it."""
    lead = len(wide) - len(narrow)
    if lead:
        gradient = graph.op("ReduceSum", gradient, graph.integers(*range(lead)), keepdims=0)
    repeated = [axis for axis, dim in enumerate(narrow) if dim == 1 and wide[lead + axis] != 1]
    if repeated:
        gradient = graph.op("ReduceSum", gradient, graph.integers(*repeated), keepdims=1)
    return gradient


def _zero(site: Site) -> str:
    return site.graph.constant(0)


@rule("Add", "Sum")
def _add(site: Site) -> Gradients:
    return tuple(site.summed_to(site.dy, value) for value in site.inputs)


@rule("Sub")
def _sub(site: Site) -> Gradients:
    a, b = site.inputs
    return site.summed_to(site.dy, a), site.summed_to(site.graph.op("Neg", site.dy), b)


@rule("Mul")
def _mul(site: Site) -> Gradients:
    a, b = site.inputs
    da, db = site.graph.op("Mul", site.dy, b), site.graph.op("Mul", site.dy, a)
    return site.summed_to(da, a), site.summed_to(db, b)


@rule("Div")
def _div(site: Site) -> Gradients:
    a, b = site.inputs
    da = site.graph.op("Div", site.dy, b)
    db = site.graph.op("Neg", site.graph.op("Mul", da, site.y))
    return site.summed_to(da, a), site.summed_to(db, b)


@rule("Neg")
def _neg(site: Site) -> Gradients:
    return (site.graph.op("Neg", site.dy),)


@rule("Identity")
def _identity(site: Site) -> Gradients:
    return (site.dy,)


@rule("Cast")
def _cast(site: Site) -> Gradients:
    if not site.graph.is_float(site.x):
        return (None,)
    return (site.graph.op("Cast", site.dy, to=site.graph.types[site.x]),)


@rule("Exp")
def _exp(site: Site) -> Gradients:
    return (site.graph.op("Mul", site.dy, site.y),)


@rule("Log")
def _log(site: Site) -> Gradients:
    return (site.graph.op("Div", site.dy, site.x),)


@rule("Sqrt")
def _sqrt(site: Site) -> Gradients:
    return (site.graph.op("Div", site.dy, site.graph.op("Mul", site.graph.constant(2), site.y)),)


@rule("Reciprocal")
def _reciprocal(site: Site) -> Gradients:
    square = site.graph.op("Mul", site.y, site.y)
    return (site.graph.op("Neg", site.graph.op("Mul", site.dy, square)),)


@rule("Abs")
def _abs(site: Site) -> Gradients:
    positive = site.graph.op("Greater", site.x, _zero(site))
    return (site.graph.op("Where", positive, site.dy, site.graph.op("Neg", site.dy)),)


@rule("Relu")
def _relu(site: Site) -> Gradients:
    positive = site.graph.op("Greater", site.y, _zero(site))
    return (site.graph.op("Where", positive, site.dy, _zero(site)),)


@rule("LeakyRelu")
def _leaky_relu(site: Site) -> Gradients:
    slope = site.graph.constant(site.attribute("alpha", 0.01))
    positive = site.graph.op("Greater", site.x, _zero(site))
    return (site.graph.op("Where", positive, site.dy, site.graph.op("Mul", site.dy, slope)),)


@rule("Clip")
def _clip(site: Site) -> Gradients:
    inside = site.graph.op("Equal", site.x, site.y)
    limits = (None,) * (len(site.inputs) - 1)
    return (site.graph.op("Where", inside, site.dy, _zero(site)), *limits)


@rule("Sigmoid")
def _sigmoid(site: Site) -> Gradients:
    rest = site.graph.op("Sub", site.graph.constant(1), site.y)
    return (site.graph.op("Mul", site.dy, site.graph.op("Mul", site.y, rest)),)


@rule("Tanh")
def _tanh(site: Site) -> Gradients:
    rest = site.graph.op("Sub", site.graph.constant(1), site.graph.op("Mul", site.y, site.y))
    return (site.graph.op("Mul", site.dy, rest),)


@rule("Softmax")
def _softmax(site: Site) -> Gradients:
    graph, axis = site.graph, site.graph.integers(site.attribute("axis", -1))
    weighted = graph.op("Mul", site.dy, site.y)
    total = graph.op("ReduceSum", weighted, axis, keepdims=1)
    return (graph.op("Sub", weighted, graph.op("Mul", site.y, total)),)


@rule("LogSoftmax")
def _log_softmax(site: Site) -> Gradients:
    graph, axis = site.graph, site.graph.integers(site.attribute("axis", -1))
    total = graph.op("ReduceSum", site.dy, axis, keepdims=1)
    return (graph.op("Sub", site.dy, graph.op("Mul", graph.op("Exp", site.y), total)),)


@rule("Where")
def _where(site: Site) -> Gradients:
    condition, a, b = site.inputs
    da = site.graph.op("Where", condition, site.dy, _zero(site))
    db = site.graph.op("Where", condition, _zero(site), site.dy)
    return None, site.summed_to(da, a), site.summed_to(db, b)


@rule("Gemm")
def _gemm(site: Site) -> Gradients:
    graph, dy = site.graph, site.dy
    a, b = site.inputs[:2]
    flip_a, flip_b = int(site.attribute("transA", 0)), int(site.attribute("transB", 0))
    scale = {"alpha": float(site.attribute("alpha", 1.0))}
    da = (
        graph.op("Gemm", b, dy, transA=flip_b, transB=1, **scale)
        if flip_a
        else graph.op("Gemm", dy, b, transB=1 - flip_b, **scale)
    )
    db = (
        graph.op("Gemm", dy, a, transA=1, transB=flip_a, **scale)
        if flip_b
        else graph.op("Gemm", a, dy, transA=1 - flip_a, **scale)
    )
    if len(site.inputs) < 3 or not site.inputs[2]:
        return da, db
    dc, beta = site.summed_to(dy, site.inputs[2]), float(site.attribute("beta", 1.0))
    return da, db, dc if beta == 1 else graph.op("Mul", dc, graph.constant(beta))


@rule("MatMul")
def _matmul(site: Site) -> Gradients:
    graph, dy = site.graph, site.dy
    a, b = site.inputs
    shape_a, shape_b, shape_y = site.shape(a), site.shape(b), site.shape(site.y)
    if len(shape_a) < 2 or len(shape_b) < 2:
        raise site.refuse("a product with a vector", "give the vector a second dimension of size 1")
    da = graph.op("MatMul", dy, _swapped(site, b))
    da = summed_to(graph, da, (*shape_y[:-2], *shape_a[-2:]), shape_a)
    if len(shape_b) == 2 and len(shape_a) > 2:
        # One product over all leading dimensions: cheaper than a batch of products and a sum.
        rows = graph.op("Reshape", a, graph.integers(-1, _size(site, shape_a[-1])))
        columns = graph.op("Reshape", dy, graph.integers(-1, _size(site, shape_y[-1])))
        return da, graph.op("Gemm", rows, columns, transA=1)
    db = graph.op("MatMul", _swapped(site, a), dy)
    return da, summed_to(graph, db, (*shape_y[:-2], *shape_b[-2:]), shape_b)


def _swapped(site: Site, value: str) -> str:
    rank = len(site.shape(value))
    return site.graph.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _size(site: Site, dim: Dim) -> int:
    if not isinstance(dim, int):
        raise site.refuse(f"the size {dim} must be fixed", "export the model with fixed feature sizes")
    return dim


@rule("Reshape", "Squeeze", "Unsqueeze")
def _reshape(site: Site) -> Gradients:
    shape = site.shape(site.x)
    free = sum(not isinstance(dim, int) for dim in shape)
    target = (
        site.graph.op("Shape", site.x)
        if free > 1
        else site.graph.integers(*(dim if isinstance(dim, int) else -1 for dim in shape))
    )
    return (site.graph.op("Reshape", site.dy, target), *(None,) * (len(site.inputs) - 1))


@rule("Transpose")
def _transpose(site: Site) -> Gradients:
    rank = len(site.shape(site.x))
    order = list(site.attribute("perm") or reversed(range(rank)))
    return (site.graph.op("Transpose", site.dy, perm=[order.index(axis) for axis in range(rank)]),)


@rule("Expand")
def _expand(site: Site) -> Gradients:
    return site.summed_to(site.dy, site.x), None


@rule("ReduceSum")
def _reduce_sum(site: Site) -> Gradients:
    return (_spread(site, site.dy), *(None,) * (len(site.inputs) - 1))


@rule("ReduceMean")
def _reduce_mean(site: Site) -> Gradients:
    graph = site.graph
    counted = [site.shape(site.x)[axis] for axis in _reduced(site)]
    if all(isinstance(dim, int) for dim in counted):
        count = graph.constant(np.prod([dim for dim in counted if isinstance(dim, int)], dtype=np.int64))
    else:
        whole, left = (
            graph.op("Cast", graph.op("Size", value), to=graph.float_element) for value in (site.x, site.y)
        )
        count = graph.op("Div", whole, left)
    return (_spread(site, graph.op("Div", site.dy, count)), *(None,) * (len(site.inputs) - 1))


def _reduced(site: Site) -> list[int]:
    """The axes that a reduction goes over."""
    rank = len(site.shape(site.x))
    if len(site.inputs) < 2 or not site.inputs[1]:
        return [] if site.attribute("noop_with_empty_axes", 0) else list(range(rank))
    axes = site.graph.constants.get(site.inputs[1])
    if axes is None:
        raise site.refuse("its axes are computed", "export the model with constant axes")
    return sorted(int(axis) % rank for axis in axes) if axes.size else list(range(rank))


def _spread(site: Site, gradient: str) -> str:
    """Repeat a reduction's gradient over the axes that were reduced."""
    axes = _reduced(site)
    if not axes:
        return gradient
    if not site.attribute("keepdims", 1):
        gradient = site.graph.op("Unsqueeze", gradient, site.graph.integers(*axes))
    shape = site.shape(site.x)
    target = (
        site.graph.integers(*(dim for dim in shape if isinstance(dim, int)))
        if all(isinstance(dim, int) for dim in shape)
        else site.graph.op("Shape", site.x)
    )
    return site.graph.op("Expand", gradient, target)
