"""From an exported forward graph to a working graph whose parameters are inputs.

Parameters are taken out *before* constants are folded: folding renames, reshapes and merges what it takes
for constants (a GroupNorm weight came out as ``val_21``).
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter

from fl_protocol.errors import ArtifactError
from models.build.exported_mode import in_evaluation_mode, keep_statistics, running_statistics
from models.build.exporter import declared_parameters
from models.build.graph import BATCH, UnknownShape, WorkingGraph, described
from models.build.lower import LOWERINGS, lower
from models.build.mode import MODES, in_mode
from models.build.obstacles import foreign, nested, unsupported
from models.build.roles import BATCH_NORM, FROZEN, roles_of
from models.runtime.numpy_ops import KERNELS
from models.runtime.onnx_reader import MAX_NAME_BYTES, OPSET

__all__ = ["Forward", "lift", "load_model"]

_MAX_NAME_CHARS = 128
_SETTINGS = {"Resize": (1, 2, 3), "Pad": (2,), "Clip": (1, 2), "Dropout": (1,), "Pow": (1,)}
"""Inputs that say how an operator works: numbers, but no parameters."""
_INPUTS = {
    TensorProto.FLOAT: TensorProto.FLOAT,
    TensorProto.INT32: TensorProto.INT32,
    TensorProto.INT64: TensorProto.INT32,
}
"""Element type of the model's input to that of ``x``; ids travel as int32, which every runtime has."""
_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_NESTED = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A forward model ready to be differentiated.

    ``graph`` has the inputs ``x`` and ``w.<parameter>``; ``output`` is the value the model computes where
    it infers. ``training`` is the same in training mode (``models.build.mode``), with ``training_output``
    and ``statistics``, which maps a running statistic to its next value; ``moves_once`` unless a layer that
    has some is used twice. ``parameters`` maps names to
    float32 arrays in wire order, ``roles`` each of them to its role in the manifest; ``buffers`` names those
    that are running statistics. ``source`` is the model as it was given, in evaluation mode.
    """

    graph: WorkingGraph
    output: str
    training: WorkingGraph
    training_output: str
    statistics: Mapping[str, str]
    moves_once: bool
    parameters: dict[str, NDArray[np.float32]]
    roles: Mapping[str, str]
    buffers: frozenset[str]
    source: onnx.ModelProto

    @property
    def trained(self) -> tuple[str, ...]:
        """The weights that an optimizer moves, trainable and personal ones, in wire order."""
        return tuple(name for name, role in self.roles.items() if role != FROZEN and name not in self.buffers)


def load_model(source: onnx.ModelProto | Path | str) -> onnx.ModelProto:
    """Read and check a model, from a file or as it is; the model given is not changed.

    Raises:
        ArtifactError: the file is missing or is no valid ONNX model.
    """
    try:
        if isinstance(source, Path | str):
            model = onnx.load(str(source))
        else:
            model = onnx.ModelProto()
            model.CopyFrom(source)
        onnx.checker.check_model(model)
    except OSError as error:
        raise ArtifactError(f"cannot read {source}: {error.strerror or error}") from None
    except Exception as error:  # protobuf, the checker and the loader share no base class
        named = f"{source} is" if isinstance(source, Path | str) else "this is"
        raise ArtifactError(f"{named} not a valid ONNX model: {error}") from None
    return model


def lift(
    model: onnx.ModelProto,
    *,
    patterns: Sequence[str] | None = None,
    train: Sequence[str] | None = None,
    personal: Sequence[str] | None = None,
    batch_norm: str | None = None,
) -> Forward:
    """Make the working graphs of a checked model.

    Parameters are the float32 initializers of at least one dimension, or those whose name matches one of
    ``patterns`` (shell style); all others stay constants of the graph. Those that match one of ``personal``
    are trained and stay on the device; of the others, those that match one of ``train`` (all, without it)
    are trained and travel, and what is left is frozen. ``batch_norm`` is one of ``roles.BATCH_NORM``, the
    first of them where not given; a running statistic that matches ``personal`` stays on the device even
    where others are averaged.

    Raises:
        ArtifactError: the model cannot become a training artifact; the message names the node and why.
    """
    _refuse_foreign(model)
    source = in_evaluation_mode(inliner.inline_local_functions(model) if model.functions else model)
    converted = _to_opset(source)
    _give_each_its_own(converted)
    parameters = _parameters(converted, patterns, declared_parameters(model))
    buffers = running_statistics(converted, parameters.keys())
    roles = roles_of(
        parameters, buffers, train=train, personal=personal, batch_norm=batch_norm or BATCH_NORM[0]
    )
    moved = keep_statistics(converted, [name for name in buffers if roles[name] != FROZEN])
    source_input = _one_input(converted)
    source_output = _one_output(converted)
    converted = _with_parameters_as_inputs(_with_free_batch(converted, source_input.name), parameters)
    graph, value = _working_graph(converted, parameters, source_input, source_output)
    try:
        value = lower(graph, value)
    except UnknownShape:
        _check_operators(graph)  # of a node that nobody knows, nobody knows the shape
        raise
    graph.prune(value)
    moving = sum(node.op_type == "BatchNormalization" for node in graph.nodes)
    inferring, (output,) = in_mode(graph, [value], training=False)
    after = [f"fwd.{name}" for name in moved.values()]
    training, (training_output, *next_ones) = in_mode(graph, [value, *after], training=True)
    _check_nodes(inferring)
    _check_nodes(training)
    _check_batch(inferring, output)
    return Forward(
        graph=inferring,
        output=output,
        training=training,
        training_output=training_output,
        statistics=dict(zip(moved, next_ones, strict=True)),
        moves_once=len(moved) == 2 * moving,
        parameters=parameters,
        roles=roles,
        buffers=frozenset(buffers),
        source=source,
    )


def _refuse_foreign(model: onnx.ModelProto) -> None:
    graph = model.graph
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ArtifactError(
            f"the parameter {name!r} is sparse",
            hint="make it dense before the export (in PyTorch: to_dense())",
        )
    local = {(function.domain, function.name) for function in model.functions}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in local:
            raise foreign(node)
        if any(entry.type in _NESTED for entry in node.attribute):
            raise nested(node)
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ArtifactError(
                f"the tensor {tensor.name!r} lies in another file",
                hint="give the path of the .onnx file, beside which the other one lies",
            )


def _to_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    if version < OPSET:
        try:
            converted = version_converter.convert_version(converted, OPSET)
        except Exception as error:  # the converter's C++ side raises RuntimeError and worse
            raise ArtifactError(
                f"the model's operator set {version} cannot be brought to {OPSET}: {error}",
                hint=f"export it again with opset {OPSET}",
            ) from None
    # Downwards there is no converter; the checker and the comparison with the source tell if it matters.
    del converted.opset_import[:]
    converted.opset_import.append(helper.make_opsetid("", OPSET))
    converted.ir_version = min(converted.ir_version, 9)
    return converted


def _give_each_its_own(model: onnx.ModelProto) -> None:
    """Undo an exporter's thrift: tensors that happened to be equal (all zeros, all ones) are stored once and
    passed on under the other's name, but will be trained apart."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Identity"]:
        if node.input[0] in stored and node.output[0] not in [value.name for value in model.graph.output]:
            twin = onnx.TensorProto()
            twin.CopyFrom(stored[node.input[0]])
            twin.name = node.output[0]
            model.graph.initializer.append(twin)
            model.graph.node.remove(node)


def _parameters(
    model: onnx.ModelProto, patterns: Sequence[str] | None, declared: frozenset[str] | None
) -> dict[str, NDArray[np.float32]]:
    """``declared`` are the parameters by the exporter's own word: what else is float32 are its constants."""
    parameters: dict[str, NDArray[np.float32]] = {}
    settings = {
        node.input[index]
        for node in model.graph.node
        for index in _SETTINGS.get(node.op_type, ())
        if index < len(node.input)
    }
    normalised = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    known = declared and declared.union(*(node.input[3:5] for node in normalised))
    for tensor in model.graph.initializer:
        wanted = (
            any(fnmatch.fnmatchcase(tensor.name, pattern) for pattern in patterns)
            if patterns is not None
            else tensor.data_type in _FLOATING
            and len(tensor.dims) > 0
            and tensor.name not in settings
            and (not known or tensor.name in known)
        )
        if not wanted:
            continue
        if tensor.data_type != TensorProto.FLOAT or len(tensor.name) > _MAX_NAME_CHARS:
            kind = TensorProto.DataType.Name(tensor.data_type)
            count = len(tensor.name)
            long = f", its name {count} characters long" if count > _MAX_NAME_CHARS else ""
            raise ArtifactError(
                f"the parameter {tensor.name[:_MAX_NAME_CHARS]!r} is {kind}{long}",
                hint="export the model in float32 (in PyTorch: net.float()), with names of at most "
                f"{_MAX_NAME_CHARS} characters",
            )
        parameters[tensor.name] = np.array(numpy_helper.to_array(tensor), np.float32)
        if not np.isfinite(parameters[tensor.name]).all():
            raise ArtifactError(f"the parameter {tensor.name!r} holds a value that is not finite")
    if not parameters:
        raise ArtifactError(
            "the model has no parameters to train" + (f" that match {list(patterns)}" if patterns else ""),
            hint="export with the weights as initializers, not folded into constants",
        )
    return parameters


def _one_input(model: onnx.ModelProto) -> Any:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ArtifactError(
            f"the model has {len(inputs)} inputs: {[value.name for value in inputs]}, not 1",
            hint="export it with one, which the model cuts up itself (Slice, Split)",
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in _INPUTS:
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise ArtifactError(
            f"the input {inputs[0].name!r} is {kind}", hint="the input must be float32, int32 or int64"
        )
    free = [index for index, dim in enumerate(tensor.shape.dim) if index and not dim.dim_value > 0]
    if len(tensor.shape.dim) < 2 or free:
        raise ArtifactError(
            f"the input {inputs[0].name!r} must be [batch, sizes...]; {_spelt(tensor)} is not",
            hint="export the model with fixed sizes in every dimension but the first",
        )
    return inputs[0]


def _one_output(model: onnx.ModelProto) -> str:
    outputs = [value.name for value in model.graph.output]
    if len(outputs) != 1:
        raise ArtifactError(
            f"the model has {len(outputs)} outputs: {outputs}", hint="export with the logits as only output"
        )
    return str(outputs[0])


def _with_free_batch(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    for value in model.graph.input:
        if value.name == name:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return model


def _with_parameters_as_inputs(
    model: onnx.ModelProto, parameters: dict[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in parameters]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    declared = {value.name for value in model.graph.input}
    for name, array in parameters.items():
        if name not in declared:
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    return model


def _working_graph(
    model: onnx.ModelProto,
    parameters: dict[str, NDArray[np.float32]],
    source_input: Any,
    output: str,
) -> tuple[WorkingGraph, str]:
    graph = WorkingGraph()
    declared = source_input.type.tensor_type
    element = _INPUTS[declared.elem_type]
    sizes = [dim.dim_value for dim in declared.shape.dim[1:]]
    rename = {source_input.name: graph.input("x", [BATCH, *sizes], element)}
    if element != declared.elem_type:
        rename[source_input.name] = graph.op("Cast", "x", to=declared.elem_type)
    for name, array in parameters.items():
        rename[name] = graph.input(f"w.{name}", array.shape)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        rename[tensor.name] = graph.constant(array, array.dtype)
    for node in model.graph.node:
        clean = onnx.NodeProto()
        clean.CopyFrom(node)
        del clean.metadata_props[:]
        clean.doc_string = ""
        clean.name = f"fwd.{node.name or node.output[0]}"[:MAX_NAME_BYTES]
        for index, name in enumerate(node.input):
            clean.input[index] = rename.get(name, name)
        for index, name in enumerate(node.output):
            if name:
                rename[name] = clean.output[index] = f"fwd.{name}"
        graph.nodes.append(clean)
    return graph, rename.get(output, output)


def _check_operators(graph: WorkingGraph) -> None:
    for node in graph.nodes:
        if not any(node.op_type in known for known in (KERNELS, LOWERINGS, MODES)):
            raise unsupported(node)


def _check_nodes(graph: WorkingGraph) -> None:
    graph.infer()
    for node in graph.nodes:
        if node.op_type not in KERNELS:
            raise unsupported(node)
        if len(node.output) > 1 and any(node.output[1:]):
            raise ArtifactError(f"{described(node)} has more than one output")
        graph.shape(node.output[0])


def _check_batch(graph: WorkingGraph, output: str) -> None:
    shape = graph.shape(output)
    if shape and shape[0] == BATCH:
        return
    where = ""
    free = {name for name in graph.inputs if BATCH in graph.shape(name)}
    for node in graph.nodes:
        sizes = graph.shape(node.output[0])
        if any(isinstance(dim, str) for dim in sizes):
            free.update(node.output)
        elif free.intersection(node.input):
            where = f": {described(node)} makes {list(sizes)} of any number of rows"
            break
    raise ArtifactError(
        f"the model's output has the shape {list(shape)}, not [batch, ...]{where}",
        hint="export with a dynamic batch dimension; write no number of rows into the model (reshape to -1)",
    )


def _spelt(tensor: Any) -> list[int | str]:
    return [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim]
