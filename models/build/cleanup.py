"""Cleaning up: what a finished graph computes for nothing, or twice, is taken out of it.

Lowerings and gradient rules each look at one node; what they write side by side is often more than is
needed. Nothing here changes a result by more than the order of one multiplication.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx

from models.build.graph import Dim, WorkingGraph, attribute

__all__ = ["clean", "finished"]

_MOST_PASSES = 4
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_BROADCASTING = frozenset({"Add", "Div", "Mul", "Sub", "Sum", "Where"})
_NEUTRAL = {"Add": 0, "Div": 1, "Mul": 1, "Sub": 0}
"""The number that changes nothing; on the right side only where the operands may not change places."""
_COMMUTING = frozenset({"Add", "Mul"})


def finished(graph: WorkingGraph, name: str, inputs: Sequence[str], outputs: Mapping[str, str]) -> bytes:
    """Clean up and serialise; see ``WorkingGraph.finish``."""
    graph.prune(*outputs.values())
    graph.infer()
    cleaned = clean(graph, list(outputs.values()))
    return graph.finish(name, inputs, {key: cleaned[value] for key, value in outputs.items()})


def clean(graph: WorkingGraph, outputs: Sequence[str]) -> dict[str, str]:
    """Rewrite the nodes of ``graph`` until nothing changes; its shapes must be inferred.

    Returns by what value each of ``outputs`` is now computed.
    """
    values = {name: name for name in outputs}
    for _ in range(_MOST_PASSES):
        replaced = _one_pass(graph)
        if not replaced:
            break
        values = {name: replaced.get(value, value) for name, value in values.items()}
    return values


class _Pass:
    """What a rewriting may ask about the nodes before the one that it looks at."""

    def __init__(self, graph: WorkingGraph) -> None:
        self.graph = graph
        self.makers: dict[str, onnx.NodeProto] = {}
        self.quotients: dict[str, onnx.NodeProto] = {}
        """Divisions by what they divide."""

    def enter(self, node: onnx.NodeProto) -> None:
        """Remember a node that has got its place."""
        self.makers |= dict.fromkeys(node.output, node)
        if node.op_type == "Div":
            self.quotients.setdefault(node.input[0], node)

    def maker(self, value: str, *ops: str) -> onnx.NodeProto | None:
        """The node that computes a value, where it is one of ``ops``."""
        node = self.makers.get(value)
        return node if node is not None and node.op_type in ops else None

    def same_shape(self, a: str, b: str) -> bool:
        """Whether two values are known to have one shape."""
        shape = self.graph.known_shape(a)
        return shape is not None and shape == self.graph.known_shape(b)

    def instead_of(self, old: str, op: str, *inputs: str, shape: Sequence[Dim] | None = None) -> str:
        """A new node of the type and shape of ``old``, or of another ``shape``."""
        graph, count = self.graph, len(self.graph.nodes)
        value = graph.op(op, *inputs)
        known = graph.known_shape(old) if shape is None else shape
        if known is not None:
            graph.know(value, known, like=old)
        else:
            graph.stands_for(value, old)
        for node in graph.nodes[count:]:
            self.enter(node)
        return value


_Rewriting: TypeAlias = Callable[[_Pass, onnx.NodeProto], "str | None"]
"""Returns the value that stands for the node's output, or ``None``; it may also change the node's inputs."""


def _one_pass(graph: WorkingGraph) -> dict[str, str]:
    """Rewrite every node once; the values that are now computed otherwise, and by what."""
    nodes, state = graph.take_nodes(), _Pass(graph)
    replaced: dict[str, str] = {}
    made: dict[object, str] = {}
    for node in nodes:
        node.input[:] = [replaced.get(name, name) for name in node.input]
        value = next(filter(None, (rewrite(state, node) for rewrite in _REWRITINGS)), None)
        key = (node.op_type, *node.input, *sorted(entry.SerializeToString() for entry in node.attribute))
        if value is None and len(node.output) == 1:
            value = made.setdefault(key, node.output[0])
        if value is not None and value != node.output[0]:
            replaced[node.output[0]] = value
        else:
            graph.nodes.append(node)
            state.enter(node)
    return replaced


def _neutral(state: _Pass, node: onnx.NodeProto) -> str | None:
    """``x * 1``, ``x + 0``."""
    if node.op_type not in _NEUTRAL or len(node.input) != 2:
        return None
    for value, other in ((0, 1), (1, 0)) if node.op_type in _COMMUTING else ((0, 1),):
        constant = state.graph.constants.get(node.input[other])
        if (
            constant is not None
            and (constant == _NEUTRAL[node.op_type]).all()
            and state.same_shape(node.input[value], node.output[0])
        ):
            return str(node.input[value])
    return None


def _view_of_view(state: _Pass, node: onnx.NodeProto) -> str | None:
    """A Reshape looks through other ones; one to the shape that is there already is none."""
    if node.op_type != "Reshape":
        return None
    if state.same_shape(node.input[0], node.output[0]):
        return str(node.input[0])
    inner, target = state.maker(node.input[0], *_VIEWS), state.graph.constants.get(node.input[1])
    if inner is None or target is None:
        return None
    old, new = (state.graph.known_shape(name) for name in (node.input[0], inner.input[0]))
    # A 0 stands for the size at the same place of what is reshaped.
    copied = [place for place, size in enumerate(target) if size == 0]
    if (
        old is None
        or new is None
        or any(new[place : place + 1] != old[place : place + 1] for place in copied)
    ):
        return None
    node.input[0] = inner.input[0]
    return str(node.input[0]) if state.same_shape(node.input[0], node.output[0]) else None


def _turned_twice(state: _Pass, node: onnx.NodeProto) -> str | None:
    """A Transpose of a Transpose is one, or none."""
    inner = state.maker(node.input[0], "Transpose") if node.op_type == "Transpose" else None
    orders = [attribute(it, "perm") for it in (node, inner) if it is not None]
    if inner is None or not all(orders):
        return None
    order = [orders[1][axis] for axis in orders[0]]
    if order == sorted(order):
        return str(inner.input[0])
    node.input[0] = inner.input[0]
    node.attribute[0].ints[:] = order
    return None


def _through_quotient(state: _Pass, node: onnx.NodeProto) -> str | None:
    """``x * b`` where ``x / q`` is there, ``b`` and ``q`` small: by the quotient, so that ``x`` may go.

    The gradient of a normalisation asks for the centred value, its own for the normalised one.
    """
    if node.op_type != "Mul":
        return None
    for place, other in ((0, 1), (1, 0)):
        value, factor = node.input[place], node.input[other]
        quotient = state.quotients.get(value)
        if (
            quotient is not None
            and state.same_shape(factor, quotient.input[1])
            and not state.same_shape(factor, value)
            and state.same_shape(value, node.output[0])
        ):
            scaled = state.instead_of(factor, "Mul", factor, quotient.input[1])
            node.input[:] = [quotient.output[0], scaled]
            return None
    return None


def _late_expand(state: _Pass, node: onnx.NodeProto) -> str | None:
    """What is computed of a repeated value and of one number is computed first, then repeated."""
    graph = state.graph
    if node.op_type not in (*_NEUTRAL, "Neg"):
        return None
    sources, targets = [], set()
    for name in node.input:
        expand = state.maker(name, "Expand")
        constant = graph.constants.get(name)
        if expand is not None and state.same_shape(name, node.output[0]):
            sources.append(str(expand.input[0]))
            targets.add(str(expand.input[1]))
        elif constant is not None and constant.ndim == 0:
            sources.append(name)
        else:
            return None
    shapes = {graph.known_shape(name) for name in sources if name not in graph.constants}
    if len(targets) != 1 or len(shapes) != 1 or None in shapes:
        return None
    small = state.instead_of(node.output[0], node.op_type, *sources, shape=shapes.pop())
    return state.instead_of(node.output[0], "Expand", small, targets.pop())


def _needless_expand(state: _Pass, node: onnx.NodeProto) -> str | None:
    """An operator that broadcasts anyway reads what an Expand would have copied."""
    if node.op_type not in _BROADCASTING:
        return None
    for place, name in enumerate(node.input):
        others = [other for at, other in enumerate(node.input) if at != place]
        expand = state.maker(name, "Expand")
        if expand is not None and any(
            state.maker(other, "Expand") is None and state.same_shape(other, node.output[0])
            for other in others
        ):
            node.input[place] = expand.input[0]
    return None


_REWRITINGS: Sequence[_Rewriting] = (
    _neutral,
    _view_of_view,
    _turned_twice,
    _late_expand,
    _needless_expand,
    _through_quotient,
)
