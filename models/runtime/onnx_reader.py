"""Reads an ``.onnx`` file without the onnx package: just what running an artifact's graph needs.

Sizes, counts and nesting are bounded; whatever is not understood is refused, never guessed.
Field numbers: onnx.proto of ONNX 1.15 (IR version 9).
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.runtime.protobuf import FieldValue, fields, floats, integers, octets, signed, text

__all__ = ["OPSET", "Attribute", "Graph", "Node", "Value", "read_model"]

OPSET = 18
MAX_MODEL_BYTES = 1 << 28
MAX_NODES = 100_000
MAX_NAME_BYTES = 1024
MAX_RANK = 8
MAX_PORTS = 4096

Attribute: TypeAlias = int | float | bytes | list[int] | list[float] | NDArray[Any]

DTYPES: Mapping[int, Any] = {
    1: np.dtype("<f4"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    11: np.dtype("<f8"),
}
"""TensorProto.DataType to numpy: the element types that an artifact's graphs may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator; an optional input that is left out is the empty name."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A graph's input or output; a free dimension is ``None``."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A model's graph; ``constants`` are its initializers (read-only arrays)."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[Any]]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def computing(self, *names: str) -> "Graph":
        """The part of the graph that computes these values; what it does not need are its inputs no more.

        A value that is no output of the whole graph has no dtype or shape worth asking for.
        """
        wanted = set(names)
        nodes: list[Node] = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                nodes.append(node)
        known = {value.name: value for value in self.outputs}
        return replace(
            self,
            nodes=tuple(nodes[::-1]),
            inputs=tuple(value for value in self.inputs if value.name in wanted),
            outputs=tuple(
                known.get(name, Value(name=name, dtype=np.dtype(np.int64), shape=())) for name in names
            ),
        )


def read_model(content: bytes) -> Graph:
    """Read a ModelProto.

    Raises:
        ArtifactError: malformed bytes, another opset, a foreign operator domain, a nested graph, local
            functions, sparse or external tensors, an element type or a size out of bounds.
    """
    if len(content) > MAX_MODEL_BYTES:
        raise ArtifactError(f"an ONNX file of {len(content)} bytes, more than {MAX_MODEL_BYTES}")
    graph: memoryview | None = None
    opsets: dict[str, int] = {}
    for number, value in fields(memoryview(content)):
        if number == 7:
            graph = octets(value)
        elif number == 8:
            domain, version = _opset(octets(value))
            opsets[domain] = version
        elif number == 25:
            raise ArtifactError("the ONNX file has local functions, which this reader does not run")
    if graph is None:
        raise ArtifactError("the ONNX file has no graph")
    if opsets != {"": OPSET}:
        raise ArtifactError(f"the ONNX file uses operator sets {opsets}, this reader knows only {OPSET}")
    return _graph(graph)


def _opset(message: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in fields(message):
        if number == 1:
            domain = _name(value)
        elif number == 2:
            version = signed(value)
    return ("" if domain == "ai.onnx" else domain), version


def _graph(message: memoryview) -> Graph:
    nodes: list[Node] = []
    constants: dict[str, NDArray[Any]] = {}
    inputs: list[Value] = []
    outputs: list[Value] = []
    for number, value in fields(message):
        if number == 1:
            nodes.append(_node(octets(value)))
        elif number == 5:
            name, array = _tensor(octets(value))
            if name in constants:
                raise ArtifactError(f"the constant {name!r} occurs twice")
            constants[name] = array
        elif number == 11:
            inputs.append(_value(octets(value)))
        elif number == 12:
            outputs.append(_value(octets(value)))
        elif number == 15:
            raise ArtifactError("the graph has sparse constants, which this reader does not know")
        if len(nodes) > MAX_NODES or max(len(constants), len(inputs), len(outputs)) > MAX_NODES:
            raise ArtifactError(f"the graph has more than {MAX_NODES} nodes, constants, inputs or outputs")
    return Graph(nodes=tuple(nodes), constants=constants, inputs=tuple(inputs), outputs=tuple(outputs))


def _node(message: memoryview) -> Node:
    op = name = domain = ""
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    for number, value in fields(message):
        if number == 1:
            inputs.append(_name(value))
        elif number == 2:
            outputs.append(_name(value))
        elif number == 3:
            name = _name(value)
        elif number == 4:
            op = _name(value)
        elif number == 5:
            key, attribute = _attribute(octets(value))
            attributes[key] = attribute
        elif number == 7:
            domain = _name(value)
        if len(inputs) + len(outputs) + len(attributes) > MAX_PORTS:
            raise ArtifactError(f"a node with more than {MAX_PORTS} inputs, outputs and attributes")
    if domain not in ("", "ai.onnx"):
        raise ArtifactError(f"node {name!r} is of the foreign operator domain {domain!r}")
    # Nodes of the builder's own have no names: they are known by what they compute.
    name = name or next(iter(outputs), "")
    return Node(op=op, name=name, inputs=tuple(inputs), outputs=tuple(outputs), attributes=attributes)


def _attribute(message: memoryview) -> tuple[str, Attribute]:
    name, kind = "", 0
    single: dict[int, Attribute] = {1: 0.0, 2: 0, 3: b""}
    many_floats: list[float] = []
    many_integers: list[int] = []
    for number, value in fields(message):
        if number == 1:
            name = _name(value)
        elif number == 2:
            single[1] = _one_float(value)
        elif number == 3:
            single[2] = signed(value)
        elif number == 4:
            single[3] = bytes(octets(value))
        elif number == 5:
            single[4] = _tensor(octets(value))[1]
        elif number == 7:
            many_floats += floats(value)
        elif number == 8:
            many_integers += integers(value)
        elif number == 20:
            kind = signed(value)
    known = {**single, 6: many_floats, 7: many_integers}
    if kind not in known:
        raise ArtifactError(f"attribute {name!r} is of kind {kind}, which this reader does not know")
    return name, known[kind]


def _tensor(message: memoryview) -> tuple[str, NDArray[Any]]:
    name, kind = "", 0
    dims: list[int] = []
    raw: memoryview | None = None
    listed: dict[int, list[FieldValue]] = {4: [], 5: [], 7: [], 10: []}
    for number, value in fields(message):
        if number == 1:
            dims += integers(value)
        elif number == 2:
            kind = signed(value)
        elif number in listed:
            listed[number].append(value)
        elif number == 8:
            name = _name(value)
        elif number == 9:
            raw = octets(value)
        elif number in (3, 13, 14) and value not in (0, b""):
            raise ArtifactError(f"tensor {name!r} lies in another file or in segments")
    dtype = DTYPES.get(kind)
    if dtype is None:
        raise ArtifactError(f"tensor {name!r} has element type {kind}, which this reader does not know")
    if len(dims) > MAX_RANK or any(dim < 0 for dim in dims):
        raise ArtifactError(f"tensor {name!r} has dimensions {dims[: MAX_RANK + 1]}")
    flat = _listed_values(listed, dtype) if raw is None else _raw_values(raw, dtype)
    if flat.size != math.prod(dims):
        raise ArtifactError(f"tensor {name!r} has {flat.size} values for the dimensions {dims}")
    array = flat.reshape(dims)
    array.flags.writeable = False
    return name, array


def _raw_values(raw: memoryview, dtype: np.dtype[Any]) -> NDArray[Any]:
    if len(raw) % dtype.itemsize:
        raise ArtifactError(f"a tensor of {len(raw)} bytes, no multiple of its element's {dtype.itemsize}")
    if dtype.kind == "b":
        # Any byte but 0 and 1 in a numpy bool is undefined behaviour.
        return np.asarray(np.frombuffer(raw, np.uint8) != 0)
    return np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))


def _listed_values(listed: Mapping[int, list[FieldValue]], dtype: np.dtype[Any]) -> NDArray[Any]:
    native = dtype.newbyteorder("=")
    if dtype.kind == "f":
        number = 4 if dtype.itemsize == 4 else 10
        parts = [_raw_values(octets(value), dtype) for value in listed[number]]
        return np.concatenate(parts) if parts else np.zeros(0, native)
    entries = [entry for value in listed[7 if dtype.itemsize == 8 else 5] for entry in integers(value)]
    bits = 64 if dtype.itemsize == 8 else 32
    if any(not -(1 << (bits - 1)) <= entry < 1 << (bits - 1) for entry in entries):
        raise ArtifactError("an integer tensor with a value out of range")
    return np.array(entries, native)


def _value(message: memoryview) -> Value:
    name, kind = "", 0
    shape: tuple[int | None, ...] = ()
    for number, value in fields(message):
        if number == 1:
            name = _name(value)
        elif number == 2:
            for type_number, type_value in fields(octets(value)):
                if type_number != 1:
                    raise ArtifactError(f"{name!r} is not a tensor")
                for tensor_number, tensor_value in fields(octets(type_value)):
                    if tensor_number == 1:
                        kind = signed(tensor_value)
                    elif tensor_number == 2:
                        shape = _shape(octets(tensor_value))
    dtype = DTYPES.get(kind)
    if dtype is None:
        raise ArtifactError(f"{name!r} has element type {kind}, which this reader does not know")
    return Value(name=name, dtype=dtype.newbyteorder("="), shape=shape)


def _shape(message: memoryview) -> tuple[int | None, ...]:
    shape: list[int | None] = []
    for number, value in fields(message):
        if number != 1:
            continue
        size: int | None = None
        for dim_number, dim_value in fields(octets(value)):
            if dim_number == 1:
                size = signed(dim_value)
        shape.append(size)
        if len(shape) > MAX_RANK:
            raise ArtifactError(f"a shape of more than {MAX_RANK} dimensions")
    return tuple(shape)


def _one_float(value: FieldValue) -> float:
    packed = octets(value)
    if len(packed) != 4:
        raise ArtifactError("a float attribute that is not 4 bytes")
    (number,) = struct.unpack("<f", packed)
    return float(number)


def _name(value: FieldValue) -> str:
    name = text(value)
    if len(name) > MAX_NAME_BYTES:
        raise ArtifactError(f"a name of {len(name)} characters, more than {MAX_NAME_BYTES}")
    return name
