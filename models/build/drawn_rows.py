"""Rows to check a model with: random ones that it takes, the same on every machine.

Where a model looks something up, a row must hold numbers that its tables have, and there is no telling from
the tables alone: a model may add to its ids first, or have them in one tensor with measurements. So numbers
are tried.
"""

from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.runtime.artifact import TrainingArtifact
from models.runtime.flat import split_flat
from models.runtime.numpy_runtime import NumpyGraph
from models.runtime.onnx_reader import Graph, read_model
from models.runtime.session import Batch

__all__ = ["draw_batch", "draw_rows", "initial_output", "initial_tensors"]

_FEW = 8
_WIDEST = 4

Array = NDArray[Any]


def draw_rows(artifact: TrainingArtifact, bits: np.random.PCG64, count: int) -> Array:
    """Random inputs [count, ...]: float32 multiples of 1/8 in [-2, 2), or int32 ids that every table has.

    Of a model that makes ids of floats the numbers are in the range of its ids, 4 wide at most.
    """
    entry = artifact.manifest.inputs[0]
    shape = (count, *entry.shape[1:])
    first, ids = _ids(artifact)
    if entry.dtype == "int32":
        return (first + _below(ids or _FEW, bits, *shape)).astype(np.int32)
    if ids:
        return (first + _below(8 * min(ids - 1, _WIDEST) + 1, bits, *shape) / 8).astype(np.float32)
    return ((_below(32, bits, *shape) - 16) / 8).astype(np.float32)


def draw_batch(artifact: TrainingArtifact, bits: np.random.PCG64, count: int) -> Batch:
    """A random batch with labels as the loss takes them: one of the model's classes per row, or multiples of
    1/8 in [0, 1]; weights of 0.5, 1, 1.5 or 2; row 1 weighs 0."""
    x = draw_rows(artifact, bits, count)
    output = initial_output(artifact, x[:1]).shape
    sample_weight = ((_below(4, bits, count) + 1) / 2).astype(np.float32)
    sample_weight[1:2] = 0
    if artifact.manifest.inputs[1].dtype == "int32":
        y = _below(output[-1], bits, count).astype(np.int32)
    else:
        y = (_below(9, bits, count, *output[1:]) / 8).astype(np.float32)
    return Batch(x=x, y=y, sample_weight=sample_weight)


def initial_tensors(artifact: TrainingArtifact) -> dict[str, NDArray[np.float32]]:
    """Every tensor as it starts."""
    return artifact.frozen_weights() | split_flat(artifact.initial_weights(), artifact.layout)


def initial_output(artifact: TrainingArtifact, x: Array) -> Array:
    """What ``infer.onnx`` computes with every tensor as it starts; the other graphs are not read for it."""
    feeds = {f"w.{name}": array for name, array in initial_tensors(artifact).items()}
    return NumpyGraph(_read(artifact.read("infer.onnx")))(feeds | {"x": x})["output"]


@lru_cache(maxsize=1)
def _read(content: bytes) -> Graph:
    """The graph of one model after the other: each is asked for many times while it is built."""
    return read_model(content)


def _ids(artifact: TrainingArtifact) -> tuple[int, int]:
    """The first number that every table has where all of a row is that number, and how many from there on;
    0 of them where nothing is looked up."""
    graph = _read(artifact.read("infer.onnx"))
    lengths = _lengths(graph)
    if not lengths:
        return 0, 0
    entry, indices = artifact.manifest.inputs[0], NumpyGraph(graph.computing(*lengths))
    feeds = {f"w.{name}": array for name, array in initial_tensors(artifact).items()}

    def found(number: int) -> bool:
        x = np.full((1, *entry.shape[1:]), number, entry.dtype)
        try:
            looked_up = indices(feeds | {"x": x})
        except ArtifactError:  # what one table gives is looked up in another
            return False
        return all(((it >= 0) & (it < lengths[name])).all() for name, it in looked_up.items())

    first = next((number for number in range(_FEW) if found(number)), 0)
    counted = range(min(lengths.values()))
    return first, max(1, bisect_left(counted, True, key=lambda further: not found(first + further)))


def _lengths(graph: Graph) -> Mapping[str, int]:
    """The values that something is looked up by, each with the length of the shortest table."""
    shapes = {value.name: value.shape for value in graph.inputs}
    shapes |= {name: array.shape for name, array in graph.constants.items()}
    lengths: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "Gather" and node.inputs[0] in shapes:
            axis = node.attributes.get("axis", 0)
            length = shapes[node.inputs[0]][axis] if isinstance(axis, int) else None
            place = node.inputs[1]
        elif node.op == "OneHot" and node.inputs[1] in graph.constants:
            length, place = int(graph.constants[node.inputs[1]].reshape(())), node.inputs[0]
        else:
            continue
        if length and place not in graph.constants:
            lengths[place] = min(length, lengths.get(place, length))
    return lengths


def _below(bound: int, bits: np.random.PCG64, *shape: int) -> Array:
    # Raw output is the same in every version of NumPy; what its distributions make of it is not.
    raw = bits.random_raw(int(np.prod(shape, dtype=np.int64)))
    return ((raw >> np.uint64(11)) % np.uint64(bound)).astype(np.int64).reshape(shape)
