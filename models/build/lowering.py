"""The table of lowerings, how a function is entered into it, and what several of them ask of a node."""

from collections.abc import Callable
from typing import TypeAlias

import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import WorkingGraph, described

__all__ = ["LOWERINGS", "Lowering", "fixed_sizes", "lowering", "optional_input"]

Lowering: TypeAlias = Callable[[WorkingGraph, onnx.NodeProto], "str | tuple[str, ...] | None"]
"""Returns the value that stands for the node's first output (or a tuple, for all of them), or ``None`` to
keep the node as it is."""

LOWERINGS: dict[str, Lowering] = {}


def lowering(*ops: str) -> Callable[[Lowering], Lowering]:
    """Enter a function into the table."""

    def enter(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(ops, function))
        return function

    return enter


def fixed_sizes(graph: WorkingGraph, node: onnx.NodeProto, value: str, start: int = 0) -> list[int]:
    """The sizes of a value from dimension ``start`` on.

    Raises:
        ArtifactError: one of them is not fixed.
    """
    shape = graph.shape(value)
    sizes = [dim for dim in shape[start:] if isinstance(dim, int)]
    if len(sizes) != len(shape) - start:
        raise ArtifactError(
            f"{described(node)}: the sizes {list(shape)} must be fixed from dimension {start} on",
            hint="export the model with fixed sizes in every dimension but the batch",
        )
    return sizes


def optional_input(node: onnx.NodeProto, index: int) -> str | None:
    """An input, or ``None`` where it is left out."""
    return str(node.input[index]) if index < len(node.input) and node.input[index] else None
