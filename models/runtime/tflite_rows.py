"""How many rows the .tflite graphs of an artifact take: told without an interpreter.

Reads the few tables of the flatbuffer that lead to the shape of an input, each offset checked against the
bytes that are there.
"""

import struct

from fl_protocol.errors import ArtifactError
from models.runtime.artifact import TrainingArtifact
from models.runtime.session import STEP

__all__ = ["fixed_rows"]

_FILE = f"{STEP}.tflite"
_IDENTIFIER = b"TFL3"
_SUBGRAPHS = 2
_TENSORS, _INPUTS = 0, 1
_SHAPE, _NAME = 0, 3
_MOST_INPUTS = 1 << 16


def fixed_rows(artifact: TrainingArtifact) -> int | None:
    """The rows of a training batch at most, where it runs on TFLite; None where there is no such graph.

    Raises:
        ArtifactError: the file is not the manifest's, or no TFLite model with an input ``x`` of rows.
    """
    if _FILE not in artifact.manifest.files:
        return None
    content = artifact.read(_FILE)
    try:
        shape = _shape_of(content, b"x")
    except struct.error:
        raise ArtifactError(f"{_FILE} is not a TFLite model") from None
    if not shape or shape[0] < 1:
        raise ArtifactError(f"{_FILE} has no input 'x' with rows")
    return shape[0]


def _shape_of(content: bytes, name: bytes) -> tuple[int, ...]:
    """The shape of the input of that name; empty where there is none."""
    if content[4:8] != _IDENTIFIER:
        raise ArtifactError(f"{_FILE} is not a TFLite model")
    graph = _elements(content, _field(content, _target(content, 0), _SUBGRAPHS))[0]
    tensors = _elements(content, _field(content, graph, _TENSORS))
    start, count = _vector(content, _field(content, graph, _INPUTS))
    for number in struct.unpack_from(f"<{count}i", content, start):
        if not 0 <= number < len(tensors):
            raise ArtifactError(f"{_FILE} has an input that is no tensor of its")
        at, length = _vector(content, _field(content, tensors[number], _NAME))
        if content[at : at + length] == name:
            at, length = _vector(content, _field(content, tensors[number], _SHAPE))
            return struct.unpack_from(f"<{length}i", content, at)
    return ()


def _target(content: bytes, at: int) -> int:
    """Where the offset at ``at`` leads."""
    (offset,) = struct.unpack_from("<I", content, at)
    return at + int(offset)


def _field(content: bytes, table: int, slot: int) -> int:
    """What a table's field of this slot leads to."""
    (back,) = struct.unpack_from("<i", content, table)
    vtable = table - int(back)
    if vtable < 0:
        raise struct.error
    (size,) = struct.unpack_from("<H", content, vtable)
    place = 4 + 2 * slot
    (offset,) = struct.unpack_from("<H", content, vtable + place) if place + 2 <= size else (0,)
    if not offset:
        raise ArtifactError(f"{_FILE} is no model with inputs")
    return _target(content, table + int(offset))


def _vector(content: bytes, at: int) -> tuple[int, int]:
    """Where the elements of a vector begin, and how many there are."""
    (count,) = struct.unpack_from("<I", content, at)
    if count > _MOST_INPUTS:
        raise struct.error
    return at + 4, int(count)


def _elements(content: bytes, at: int) -> list[int]:
    """Where the tables of a vector of tables are."""
    start, count = _vector(content, at)
    found = [_target(content, start + 4 * index) for index in range(count)]
    if not found:
        raise struct.error
    return found
