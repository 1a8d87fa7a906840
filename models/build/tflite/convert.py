"""``write_tflite``: one graph of an artifact as a ``.tflite`` file of builtin operators.

Every TFLite runtime since 2023 runs it: no Flex, no custom operator, no resource variable. The batch is
fixed, since TFLite knows no symbolic dimension; whoever runs it pads with rows of weight 0.
"""

from collections.abc import Sequence

import numpy as np

from fl_protocol.errors import ArtifactError
from models.build.tflite import convolutions, elementwise, products, reductions, shapes
from models.build.tflite.flatbuffer import FlatGraph
from models.build.tflite.replay import TRANSLATIONS, Replay, Value
from models.runtime.numpy_ops import KERNELS
from models.runtime.onnx_reader import Graph, Node, read_model
from models.runtime.session import STEP

__all__ = ["TRANSLATIONS", "write_tflite"]

_TABLES = (convolutions, elementwise, products, reductions, shapes)
"""Imported for what they enter into the table."""


def write_tflite(content: bytes, *, signature: str, batch: int) -> bytes:
    """Replay an ``.onnx`` graph of ours: the same names, order and shapes, free dimensions being ``batch``.

    Raises:
        ArtifactError: an operator, or a use of one, that TFLite has no builtin for; the message names it.
    """
    source = read_model(content)
    graph = FlatGraph()
    # Evaluation and inference are rare beside steps, and the Predictor's device may be short of memory.
    replay = Replay(graph, fast=signature == STEP)
    values: dict[str, Value] = dict(source.constants)
    for declared in source.inputs:
        shape = tuple(batch if size is None else size for size in declared.shape)
        values[declared.name] = replay.new(
            graph.input(declared.name, shape, declared.dtype.newbyteorder("="))
        )
    for node in source.nodes:
        outputs = _translated(replay, node, [values[name] if name else None for name in node.inputs])
        values.update(zip(node.outputs, outputs, strict=False))
    return graph.to_bytes(signature, _outputs(replay, source, values, batch))


def _translated(replay: Replay, node: Node, inputs: Sequence[Value | None]) -> Sequence[Value]:
    kernel, translate = KERNELS.get(node.op), TRANSLATIONS.get(node.op)
    where = f"node {node.name.removeprefix('fwd.')!r} ({node.op})"
    fixed = all(isinstance(value, np.ndarray) for value in inputs if value is not None)
    try:
        if kernel is not None and fixed:
            return [np.asarray(kernel(node.attributes, *inputs))]
        if translate is None:
            raise ArtifactError(
                "TFLite has no such operator among those that this builder writes",
                hint="build without tflite, or replace the operator in the model",
            )
        made = translate(replay, node, *inputs)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error.args[0]}", hint=error.hint) from None
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{where}: cannot be written for TFLite: {error}", hint="build without tflite"
        ) from None
    return made if isinstance(made, list) else [made]


def _outputs(replay: Replay, source: Graph, values: dict[str, Value], batch: int) -> dict[str, int]:
    outputs = {value.name: replay.tensor(values[value.name]) for value in source.outputs}
    for declared in source.outputs:
        shape = tuple(batch if size is None else size for size in declared.shape)
        found = replay.graph.shape(outputs[declared.name])
        if found != shape:
            raise ArtifactError(
                f"the TFLite graph gives {declared.name!r} as {list(found)}, not {list(shape)}"
            )
    return outputs
