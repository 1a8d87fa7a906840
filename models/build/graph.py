"""The working graph: nodes, constants and shapes of a model while it is being built.

Knows nothing of gradients. Everything in it is standard ai.onnx, opset 18; its names are prefixed by
where they come from (``fwd.`` the model, ``tmp.`` and ``const.`` the builder), so that none collides with
the pinned names of an artifact's graphs.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from fl_protocol.errors import ArtifactError
from models.runtime.onnx_reader import OPSET

__all__ = [
    "BATCH",
    "IR_VERSION",
    "Array",
    "Dim",
    "UnknownShape",
    "WorkingGraph",
    "attribute",
    "batch_factor",
    "batch_times",
    "described",
]

IR_VERSION = 9
"""Loads from onnxruntime 1.16 (2023) on."""
BATCH = "batch"
"""The symbol of the one free dimension; where something is folded into it, ``<factor>*batch``."""
_FOLDED_BATCH = re.compile(rf"(\d+)\*{BATCH}")

Dim: TypeAlias = int | str | None
"""A size, a symbol, or unknown."""
Array: TypeAlias = NDArray[Any]


class UnknownShape(ArtifactError):
    """A shape that inference has not found, or that depends on the data."""


class WorkingGraph:
    """A graph under construction; ``float_type`` is float32, or float64 where a rule is being tested.

    ``entries`` are the entries of integer values, as far as folding knows them: object[...] of ``Dim``.
    """

    def __init__(self, *, float_type: Any = np.float32) -> None:
        self.float_type = np.dtype(float_type)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: dict[str, tuple[int, tuple[Dim, ...]]] = {}
        self.types: dict[str, int] = {}
        self.entries: dict[str, Array] = {}
        self._shapes: dict[str, tuple[Dim, ...]] = {}
        self._known: dict[str, tuple[int, tuple[Dim, ...]]] = {}
        self._made_nodes: dict[object, str] = {}
        self._made_constants: dict[object, str] = {}
        self._count = 0

    @property
    def float_element(self) -> int:
        """The graph's floating-point type as a TensorProto.DataType."""
        return int(helper.np_dtype_to_tensor_dtype(self.float_type))

    def copy(self) -> "WorkingGraph":
        """A graph that can be grown without changing this one."""
        twin = WorkingGraph(float_type=self.float_type)
        for node in self.nodes:
            twin.nodes.append(onnx.NodeProto())
            twin.nodes[-1].CopyFrom(node)
        twin.constants, twin.inputs = dict(self.constants), dict(self.inputs)
        twin.types, twin._shapes = dict(self.types), dict(self._shapes)
        twin._known = dict(self._known)
        twin._made_nodes, twin._made_constants = dict(self._made_nodes), dict(self._made_constants)
        twin._count = self._count
        return twin

    def input(self, name: str, shape: Sequence[Dim], element: int | None = None) -> str:
        """Declare an input; floating point where ``element`` is not given."""
        self.inputs[name] = (element or self.float_element, tuple(shape))
        self.types[name], self._shapes[name] = self.inputs[name]
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name; the same node twice is made once."""
        # Every operator we emit is a pure function of its inputs; a random one must not come through here.
        key = (op_type, inputs, tuple(sorted((name, repr(value)) for name, value in attributes.items())))
        if key not in self._made_nodes:
            self._count += 1
            output = self._made_nodes[key] = f"tmp.{self._count}"
            self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return self._made_nodes[key]

    def constant(self, value: object, dtype: Any = None) -> str:
        """Add a constant (floating point where ``dtype`` is not given) and return its name."""
        array = np.asarray(value, dtype or self.float_type)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made_constants:
            self._count += 1
            self._made_constants[key] = f"const.{self._count}"
            self.constants[self._made_constants[key]] = array
        return self._made_constants[key]

    def integers(self, *values: int) -> str:
        """A constant int64[n]: axes, or a shape."""
        return self.constant(list(values), np.int64)

    def take_nodes(self) -> list[onnx.NodeProto]:
        """Empty the graph of its nodes, to be added again one by one, rewritten."""
        nodes, self.nodes = self.nodes, []
        self.entries.clear()
        # A node made earlier may now stand after one that would share its result.
        self._made_nodes.clear()
        return nodes

    def take_back(self, count: int) -> None:
        """Drop all nodes but the first ``count``."""
        dropped = {name for node in self.nodes[count:] for name in node.output}
        del self.nodes[count:]
        self._made_nodes = {key: name for key, name in self._made_nodes.items() if name not in dropped}

    def stands_for(self, value: str, old: str) -> None:
        """Say that ``value`` has the shape and type of ``old``, until inference finds out by itself."""
        if value not in self._shapes and old in self._shapes:
            self._shapes[value] = self._shapes[old]
        if value not in self.types and old in self.types:
            self.types[value] = self.types[old]

    def prune(self, *outputs: str) -> None:
        """Drop the nodes that none of ``outputs`` depends on."""
        self.nodes = self._live(self.nodes, set(outputs))

    def shape(self, name: str) -> tuple[Dim, ...]:
        """The shape of a value.

        Raises:
            UnknownShape: inference did not find it, or a dimension depends on the data.
        """
        shape = self._shapes.get(name)
        if shape is None or None in shape:
            node = self.producer(name)
            where = described(node) if node is not None else f"value {name!r}"
            raise UnknownShape(
                f"{where} has a shape that cannot be known before the data is: {shape}",
                hint="export the model with fixed sizes in every dimension but the batch",
            )
        return shape

    def known_shape(self, name: str) -> tuple[Dim, ...] | None:
        """The shape of a value, or ``None`` where any of it is unknown."""
        shape = self.partial_shape(name)
        return None if shape is None or None in shape else shape

    def partial_shape(self, name: str) -> tuple[Dim, ...] | None:
        """The shape of a value as far as it is known, or ``None`` where not even the rank is."""
        return self._shapes.get(name)

    def is_float(self, name: str) -> bool:
        """Whether a value is floating point, so that a gradient can flow through it."""
        return self.types.get(name) in (TensorProto.FLOAT, TensorProto.DOUBLE)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a value; ``None`` for an input or a constant."""
        return next((node for node in self.nodes if name in node.output), None)

    def know(self, name: str, shape: Sequence[Dim], *, like: str) -> None:
        """Tell inference the shape of a value, of the type of ``like``, that it does not find by itself."""
        self._shapes[name] = tuple(shape)
        self.types[name] = self.types[like]
        self._known[name] = (self.types[name], self._shapes[name])

    def infer(self, *, strict: bool = True) -> None:
        """Find shapes and element types of all values.

        Where it is not ``strict``, what follows an operator that inference does not know stays unknown.

        Raises:
            ArtifactError: the graph is inconsistent.
        """
        read = {name for node in self.nodes for name in node.input}
        constants = {name: array for name, array in self.constants.items() if name in read}
        proto = self._graph_proto(self.nodes, constants, list(self.inputs), [])
        made = {name for node in self.nodes for name in node.output}
        proto.value_info.extend(
            helper.make_tensor_value_info(name, element, shape)
            for name, (element, shape) in self._known.items()
            if name in made
        )
        try:
            inferred = shape_inference.infer_shapes(_model(proto), strict_mode=strict, data_prop=True)
        except (shape_inference.InferenceError, ValueError) as error:
            faults = str(error).replace("fwd.", "")
            raise ArtifactError(f"the shapes of the graph do not fit together: {faults}") from None
        for value in inferred.graph.value_info:
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self._shapes[value.name] = tuple(_dim(dim) for dim in tensor.shape.dim)
        for name, array in self.constants.items():
            self.types[name] = int(helper.np_dtype_to_tensor_dtype(array.dtype))
            self._shapes[name] = array.shape

    def finish(self, name: str, inputs: Sequence[str], outputs: Mapping[str, str]) -> bytes:
        """Serialise what ``outputs`` depend on; they map the name outside to the value.

        Raises:
            ArtifactError: the ONNX checker refuses the graph.
        """
        self.infer()
        nodes, constants = self._renamed(self._live(self.nodes, set(outputs.values())), outputs)
        proto = self._graph_proto(nodes, constants, inputs, list(outputs.items()), name=name)
        model = _model(proto)
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
            raise ArtifactError(f"the ONNX checker refuses the {name} graph: {error}") from None
        return bytes(model.SerializeToString(deterministic=True))

    @staticmethod
    def _live(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
        live = []
        for node in reversed(nodes):
            if wanted.intersection(node.output):
                wanted.update(name for name in node.input if name)
                live.append(node)
        return live[::-1]

    def _renamed(
        self, nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, str]
    ) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
        """Copies of the nodes that give the outputs under their names outside, and the constants they read.

        All other names are short: they would be a third of the file.
        """
        computed = {name for node in nodes for name in node.output}
        rename: dict[str, str] = {}
        copies: list[onnx.NodeProto] = []
        for outside, value in outputs.items():
            if value in computed and value not in rename:
                rename[value] = outside
            else:
                copies.append(helper.make_node("Identity", [value], [outside]))
        read = {name for node in [*nodes, *copies] for name in node.input}
        constants = [name for name in self.constants if name in read]
        for name in [*constants, *(name for node in nodes for name in node.output if name)]:
            rename.setdefault(name, str(len(rename)))
        renamed = []
        for node in [*nodes, *copies]:
            renamed.append(onnx.NodeProto())
            renamed[-1].CopyFrom(node)
            for ports in (renamed[-1].input, renamed[-1].output):
                ports[:] = [rename.get(name, name) for name in ports]
        return renamed, {rename[name]: self.constants[name] for name in constants}

    def _graph_proto(
        self,
        nodes: Sequence[onnx.NodeProto],
        constants: Mapping[str, Array],
        inputs: Sequence[str],
        outputs: Sequence[tuple[str, str]],
        *,
        name: str = "graph",
    ) -> onnx.GraphProto:
        return helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(key, *self.inputs[key]) for key in inputs],
            [
                helper.make_tensor_value_info(key, self.types[value], self.shape(value))
                for key, value in outputs
            ],
            [numpy_helper.from_array(np.asarray(array, order="C"), key) for key, array in constants.items()],
        )


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute, or the default."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def batch_times(factor: int) -> str:
    """The symbol of a dimension that ``factor`` entries per row are folded into."""
    return BATCH if factor == 1 else f"{factor}*{BATCH}"


def batch_factor(dim: Dim) -> int | None:
    """The factor of such a symbol, or ``None`` where ``dim`` is none."""
    if dim == BATCH:
        return 1
    match = _FOLDED_BATCH.fullmatch(dim) if isinstance(dim, str) else None
    return None if match is None else int(match[1])


def described(node: onnx.NodeProto) -> str:
    """A node as a person knows it: the name that the exporter gave it, and its operator."""
    return f"node {(node.name or node.output[0]).removeprefix('fwd.')!r} ({node.op_type})"


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="lichen",
    )


def _dim(dim: Any) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    name = str(dim.dim_param)
    # Inference invents a symbol of its own for a size that it does not know.
    return name if batch_factor(name) else None
