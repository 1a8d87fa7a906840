"""A TFLite file in the making: one subgraph, one signature, written as a flatbuffer.

Equal graphs give equal bytes. Intermediate tensors have no names: they would be a third of the file.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.build.tflite.schema import OPERATORS, SCHEMA_VERSION, TENSOR_TYPES

__all__ = ["FlatGraph", "Shape"]

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

_FILE_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_NO_BUFFER = 0
_LARGEST_OLD_CODE = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    shape: Shape
    dtype: np.dtype[Any]
    name: str = ""
    content: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    op: str
    version: int
    inputs: tuple[int, ...]
    options: Mapping[str, float]


class FlatGraph:
    """Tensors and operators in order; a tensor is known by its number."""

    def __init__(self) -> None:
        self._tensors: list[_Tensor] = []
        self._calls: dict[int, _Call] = {}  # by the tensor that each computes, in order
        self._made: dict[object, int] = {}
        self._inputs: dict[str, int] = {}
        self._constants: dict[tuple[str, Shape, bytes], int] = {}

    def input(self, name: str, shape: Shape, dtype: Any) -> int:
        """Declare an input of the graph."""
        self._inputs[name] = self._tensor(shape, dtype, name=name)
        return self._inputs[name]

    def constant(self, array: Array) -> int:
        """A tensor of fixed content; equal ones are stored once, int64 as int32.

        Raises:
            ArtifactError: an int64 that int32 cannot hold, or a type that files of ours do not use.
        """
        if array.dtype == np.int64:
            narrow = array.astype(np.int32)
            if not np.array_equal(narrow, array):
                raise ArtifactError(f"the constant {array.tolist()} does not fit into 32 bits")
            array = narrow
        content = np.ascontiguousarray(array).tobytes()
        key = (array.dtype.str, array.shape, content)
        if key not in self._constants:
            self._constants[key] = self._tensor(array.shape, array.dtype, content=content)
        return self._constants[key]

    def integers(self, *values: int) -> int:
        """A constant int32[n]."""
        return self.constant(np.array(values, np.int32))

    def call(
        self, op: str, inputs: Sequence[int], shape: Shape, dtype: Any, *, version: int = 1, **options: float
    ) -> int:
        """Add an operator with one output and return the output; the same one twice is added once."""
        key = (op, version, tuple(inputs), tuple(shape), np.dtype(dtype), tuple(sorted(options.items())))
        if key not in self._made:
            self._made[key] = self._tensor(shape, dtype)
            self._calls[self._made[key]] = _Call(
                op=op, version=version, inputs=tuple(inputs), options=options
            )
        return self._made[key]

    def maker(self, tensor: int) -> tuple[str, tuple[int, ...]]:
        """The operator that computes a tensor and what it reads; empty for an input or a constant."""
        call = self._calls.get(tensor)
        return ("", ()) if call is None else (call.op, call.inputs)

    def shape(self, tensor: int) -> Shape:
        """The shape of a tensor."""
        return self._tensors[tensor].shape

    def dtype(self, tensor: int) -> np.dtype[Any]:
        """The element type of a tensor: float32, int32 or bool."""
        return self._tensors[tensor].dtype

    def to_bytes(self, signature: str, outputs: Mapping[str, int]) -> bytes:
        """The file; ``outputs`` maps the name outside to the tensor, and each becomes a tensor of its own."""
        named = self._own_outputs(outputs)
        used = self._used(named.values())
        number = {tensor: place for place, tensor in enumerate(used)}
        inputs, named = (
            {name: number[tensor] for name, tensor in ports.items()} for ports in (self._inputs, named)
        )
        builder = flatbuffers.Builder(1 << 16)
        calls = [(tensor, call) for tensor, call in self._calls.items() if tensor in number]
        codes = sorted({(OPERATORS[call.op].code, call.version) for _, call in calls})
        contents = [content for content in (self._tensors[tensor].content for tensor in used) if content]
        vectors = _Vectors(builder)
        graph = {
            0: self._tensor_tables(builder, vectors, used),
            1: vectors.offset(list(inputs.values())),
            2: vectors.offset(list(named.values())),
            3: _operators(builder, vectors, calls, number, codes),
            4: builder.CreateString(signature),
        }
        parts = {
            1: _tables(builder, [_operator_code(builder, *code) for code in codes]),
            2: _tables(builder, [_table(builder, 5, graph)]),
            3: builder.CreateString("lichen"),
            # The first buffer means "no content", by the format.
            4: _tables(builder, [_buffer(builder, content) for content in (b"", *contents)]),
            7: _tables(builder, [_signature(builder, signature, inputs, named)]),
        }
        builder.StartObject(8)
        builder.PrependUint32Slot(0, SCHEMA_VERSION, 0)
        for slot, offset in parts.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        builder.Finish(builder.EndObject(), _FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _used(self, outputs: Iterable[int]) -> list[int]:
        """The inputs, and the tensors that the outputs depend on."""
        used = {*self._inputs.values(), *outputs}
        for tensor, call in reversed(self._calls.items()):
            if tensor in used:
                used.update(call.inputs)
        return sorted(used)

    def _tensor(self, shape: Shape, dtype: Any, *, name: str = "", content: bytes = b"") -> int:
        if np.dtype(dtype) not in TENSOR_TYPES:
            raise ArtifactError(f"a tensor of {np.dtype(dtype)} has no place in a TFLite graph of ours")
        self._tensors.append(
            _Tensor(shape=tuple(int(dim) for dim in shape), dtype=np.dtype(dtype), name=name, content=content)
        )
        return len(self._tensors) - 1

    def _own_outputs(self, outputs: Mapping[str, int]) -> dict[str, int]:
        """Copy what is an input, a constant or another output too: the runtime would mix them up."""
        taken = set(self._inputs.values()) | set(self._constants.values())
        named: dict[str, int] = {}
        for name, value in outputs.items():
            tensor, shape = value, self.shape(value)
            if tensor in taken:
                inputs, tensor = (value, self.integers(*shape)), self._tensor(shape, self.dtype(value))
                self._calls[tensor] = _Call(op="RESHAPE", version=1, inputs=inputs, options={})
            taken.add(tensor)
            named[name] = tensor
            self._tensors[tensor] = _Tensor(shape=shape, dtype=self.dtype(tensor), name=name)
        return named

    def _tensor_tables(self, builder: Any, vectors: "_Vectors", used: Sequence[int]) -> int:
        filled = itertools.count(1)
        tensors = [self._tensors[tensor] for tensor in used]
        buffers = [next(filled) if tensor.content else _NO_BUFFER for tensor in tensors]
        return _tables(
            builder,
            [
                _tensor(builder, vectors, tensor, buffer)
                for tensor, buffer in zip(tensors, buffers, strict=True)
            ],
        )


class _Vectors:
    """Vectors of integers, equal ones stored once: shapes repeat all over a graph."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._known: dict[tuple[int, ...], int] = {}

    def offset(self, values: Sequence[int]) -> int:
        """Where int32[n] of these values is stored."""
        key = tuple(values)
        if key not in self._known:
            self._known[key] = int(self._builder.CreateNumpyVector(np.array(key, np.int32)))
        return self._known[key]


def _table(builder: Any, slots: int, offsets: Mapping[int, int]) -> int:
    """A table that holds references to others and nothing else."""
    builder.StartObject(slots)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    return int(builder.EndObject())


def _tables(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _buffer(builder: Any, content: bytes) -> int:
    if not content:
        return _table(builder, 1, {})
    builder.Prep(_ALIGNMENT, len(content))
    return _table(builder, 1, {0: builder.CreateNumpyVector(np.frombuffer(content, np.uint8))})


def _tensor(builder: Any, vectors: _Vectors, tensor: _Tensor, buffer: int) -> int:
    shape = vectors.offset(tensor.shape)
    name = builder.CreateString(tensor.name) if tensor.name else 0
    builder.StartObject(9)
    builder.PrependUOffsetTRelativeSlot(0, shape, 0)
    builder.PrependInt8Slot(1, TENSOR_TYPES[tensor.dtype], 0)
    builder.PrependUint32Slot(2, buffer, 0)
    builder.PrependUOffsetTRelativeSlot(3, name, 0)
    builder.PrependBoolSlot(8, True, False)  # has_rank: without it [] would mean "unknown", not a scalar
    return int(builder.EndObject())


def _operator_code(builder: Any, code: int, version: int) -> int:
    builder.StartObject(4)
    builder.PrependInt8Slot(0, min(code, _LARGEST_OLD_CODE), 0)
    builder.PrependInt32Slot(2, version, 1)
    builder.PrependInt32Slot(3, code, 0)
    return int(builder.EndObject())


def _operators(
    builder: Any,
    vectors: _Vectors,
    calls: Sequence[tuple[int, _Call]],
    number: Mapping[int, int],
    codes: Sequence[tuple[int, int]],
) -> int:
    """The calls with the tensors that they compute; ``number`` is each tensor's place in the file."""
    places = {code: place for place, code in enumerate(codes)}
    tables = []
    for tensor, call in calls:
        inputs = vectors.offset([number[name] for name in call.inputs])
        outputs = vectors.offset([number[tensor]])
        place = places[OPERATORS[call.op].code, call.version]
        tables.append(_operator(builder, call, place, inputs, outputs))
    return _tables(builder, tables)


def _operator(builder: Any, call: _Call, place: int, inputs: int, outputs: int) -> int:
    operator = OPERATORS[call.op]
    options = 0
    if operator.options:
        write = {
            "bool": builder.PrependBoolSlot,
            "int8": builder.PrependInt8Slot,
            "int32": builder.PrependInt32Slot,
            "float32": builder.PrependFloat32Slot,
        }
        builder.StartObject(max([slot.number + 1 for slot in operator.slots.values()], default=0))
        for name, value in call.options.items():
            slot = operator.slots[name]
            write[slot.kind](slot.number, value, slot.default)
        options = builder.EndObject()
    builder.StartObject(5)
    builder.PrependUint32Slot(0, place, 0)
    builder.PrependUOffsetTRelativeSlot(1, inputs, 0)
    builder.PrependUOffsetTRelativeSlot(2, outputs, 0)
    builder.PrependUint8Slot(3, operator.options, 0)
    builder.PrependUOffsetTRelativeSlot(4, options, 0)
    return int(builder.EndObject())


def _signature(builder: Any, key: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> int:
    maps = {
        slot: _tables(builder, [_tensor_map(builder, name, tensor) for name, tensor in tensors.items()])
        for slot, tensors in enumerate((inputs, outputs))
    }
    return _table(builder, 5, {**maps, 2: builder.CreateString(key)})


def _tensor_map(builder: Any, name: str, tensor: int) -> int:
    text = builder.CreateString(name)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUint32Slot(1, tensor, 0)
    return int(builder.EndObject())
