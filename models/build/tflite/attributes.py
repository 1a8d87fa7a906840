"""A node's attributes, each read as the kind that its operator says it is."""

from collections.abc import Sequence

from fl_protocol.errors import ArtifactError
from models.runtime.onnx_reader import Node

__all__ = ["integer", "integers", "number", "word"]


def integer(node: Node, name: str, default: int) -> int:
    """An attribute that is one integer."""
    value = node.attributes.get(name, default)
    if not isinstance(value, int):
        raise ArtifactError(f"the attribute {name!r} is no integer")
    return value


def integers(node: Node, name: str, default: Sequence[int]) -> list[int]:
    """An attribute that is a list of integers."""
    value = node.attributes.get(name, list(default))
    if not isinstance(value, list):
        raise ArtifactError(f"the attribute {name!r} is no list of integers")
    return [int(entry) for entry in value]


def number(node: Node, name: str, default: float) -> float:
    """An attribute that is one number."""
    value = node.attributes.get(name, default)
    if not isinstance(value, int | float):
        raise ArtifactError(f"the attribute {name!r} is no number")
    return float(value)


def word(node: Node, name: str, default: str) -> str:
    """An attribute that is a word."""
    value = node.attributes.get(name, default.encode())
    if not isinstance(value, bytes):
        raise ArtifactError(f"the attribute {name!r} is no word")
    return value.decode()
