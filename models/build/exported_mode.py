"""The mode that a model was exported in, and the running statistics that it keeps.

Both modes are made of one graph, so it is brought to evaluation mode first; then the batch normalisations
whose statistics are to move are put into training mode as ONNX has it, with the next statistics as outputs.
"""

from collections.abc import Collection, Sequence

import onnx
from onnx import helper

from fl_protocol.errors import ArtifactError
from models.build.graph import described

__all__ = ["in_evaluation_mode", "keep_statistics", "running_statistics"]

_STATISTICS = slice(3, 5)
_WITHOUT = "export without optimisation, so that each layer keeps its own statistics"


def in_evaluation_mode(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model that infers, whatever mode it was exported in.

    Raises:
        ArtifactError: something reads what a layer gives in training mode alone.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    read = {name for node in copy.graph.node for name in node.input}
    read |= {value.name for value in copy.graph.output}
    for node in copy.graph.node:
        if node.op_type not in ("BatchNormalization", "Dropout"):
            continue
        further = [name for name in node.output[1:] if name in read]
        if further:
            raise ArtifactError(
                f"{described(node)}: its further output {further[0]!r} is used",
                hint="export the model in evaluation mode: net.eval()",
            )
        del node.output[1:]
        if node.op_type == "Dropout":
            del node.input[2:]
        kept = [entry for entry in node.attribute if entry.name not in ("is_test", "training_mode")]
        del node.attribute[:]
        node.attribute.extend(kept)
    return copy


def running_statistics(model: onnx.ModelProto, parameters: Collection[str]) -> set[str]:
    """The names of the ``parameters`` that batch normalisations keep beside their weights."""
    return {name for node in _batch_norms(model, parameters) for name in node.input[_STATISTICS]}


def keep_statistics(model: onnx.ModelProto, parameters: Collection[str]) -> dict[str, str]:
    """Put every batch normalisation whose statistics are among ``parameters`` into training mode.

    Returns by which value each statistic is to be replaced after a step; a layer that is used twice moves
    its own twice.

    Raises:
        ArtifactError: a statistic is also something else, as an exporter makes it of equal tensors.
    """
    layers = _batch_norms(model, parameters)
    _check_each_has_its_own(model, layers)
    moved: dict[str, str] = {}
    for node in layers:
        node.attribute.append(helper.make_attribute("training_mode", 1))
        for place, name in enumerate(node.input[_STATISTICS], _STATISTICS.start):
            node.input[place] = moved.get(name, name)
            moved[name] = f"{node.output[0]}.next.{name}"
            node.output.append(moved[name])
    return moved


def _check_each_has_its_own(model: onnx.ModelProto, layers: Sequence[onnx.NodeProto]) -> None:
    """A statistic serves one layer alone; a layer that is used twice has all its tensors in common."""
    uses: dict[str, set[tuple[str, ...]]] = {}
    for node in model.graph.node:
        for name in node.input:
            layer = tuple(node.input[1:]) if node.op_type == "BatchNormalization" else ()
            uses.setdefault(name, set()).add(layer)
    for node in layers:
        for name in node.input[_STATISTICS]:
            if uses[name] != {tuple(node.input[1:])} or list(node.input).count(name) > 1:
                raise ArtifactError(
                    f"{described(node)}: {name!r} is not its running statistic alone", hint=_WITHOUT
                )


def _batch_norms(model: onnx.ModelProto, parameters: Collection[str]) -> list[onnx.NodeProto]:
    return [
        node
        for node in model.graph.node
        if node.op_type == "BatchNormalization" and set(node.input[_STATISTICS]) <= set(parameters)
    ]
