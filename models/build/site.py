"""What a gradient rule is given, and the table that it is entered into.

A rule is given a node and the gradient of the loss with respect to the node's output, adds nodes to the
graph and returns one gradient per input (``None`` where an input has none). Nodes that nobody needs in
the end are dropped, so a rule does not ask which of its gradients are wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.build.graph import Dim, WorkingGraph, attribute, described

__all__ = ["RULES", "Gradients", "Rule", "Site", "rule", "summed_to"]


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

    def sizes(self, value: str, start: int = 0) -> list[int]:
        """The sizes of a value from dimension ``start`` on.

        Raises:
            ArtifactError: one of them is not fixed.
        """
        sizes = [dim for dim in self.shape(value)[start:] if isinstance(dim, int)]
        if len(sizes) != len(self.shape(value)) - start:
            raise self.refuse(
                f"its sizes {list(self.shape(value))} must be fixed from dimension {start} on",
                "export the model with fixed sizes in every dimension but the batch",
            )
        return sizes

    def size(self, value: str, axis: int) -> int:
        """One size of a value.

        Raises:
            ArtifactError: it is not fixed.
        """
        size = self.shape(value)[axis]
        if not isinstance(size, int):
            raise self.refuse(
                f"the size of its dimension {axis} is {size}, which must be fixed",
                "export the model with fixed sizes in every dimension but the batch",
            )
        return size

    def fixed(self, index: int) -> NDArray[Any] | None:
        """An input that must be a constant; ``None`` where it is left out.

        Raises:
            ArtifactError: it is computed.
        """
        if index >= len(self.inputs) or not self.inputs[index]:
            return None
        constant = self.graph.constants.get(self.inputs[index])
        if constant is None:
            raise self.refuse(f"its input {index} is computed", "export the model with a constant there")
        return constant

    def reshaped_like(self, gradient: str, value: str) -> str:
        """``gradient`` in the shape of ``value``, which has as many elements."""
        shape = self.shape(value)
        free = sum(not isinstance(dim, int) for dim in shape)
        target = (
            self.graph.op("Shape", value)
            if free > 1
            else self.graph.integers(*(dim if isinstance(dim, int) else -1 for dim in shape))
        )
        return self.graph.op("Reshape", gradient, target)

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
    repeated = [lead + axis for axis, dim in enumerate(narrow) if dim == 1 and wide[lead + axis] != 1]
    if not repeated:
        return (
            gradient
            if not lead
            else graph.op("ReduceSum", gradient, graph.integers(*range(lead)), keepdims=0)
        )
    summed = graph.op("ReduceSum", gradient, graph.integers(*range(lead), *repeated), keepdims=1)
    return graph.op("Squeeze", summed, graph.integers(*range(lead))) if lead else summed
