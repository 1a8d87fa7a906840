"""What exporters leave in a graph: which tensors were parameters, and whether some are no longer there.

An export for inference merges a batch normalisation into the convolution before it, drops biases that are
zero, and works out what it can. The graph computes the same and trains otherwise: it must be noticed.
"""

import re
from collections.abc import Collection

import onnx

from fl_protocol.errors import ArtifactError

__all__ = ["check_nothing_lost", "declared_parameters"]

_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_DECLARED = re.compile(r": PARAMETER target='([^']+)'")
_RULE = "pkg.onnxscript.rewriter.rule_name"
_WORKED_OUT = re.compile(r"(.*/)?(const_fold_opt__\d+|onnx::\w+_\d+|val_\d+)(:\d+)?")
"""Names that tf2onnx and PyTorch's older and newer exporters make up for tensors that they have computed."""
_FROM_TENSORFLOW = ("StatefulPartitionedCall", "tf2onnx")
_KERAS = (
    "run Keras on PyTorch (KERAS_BACKEND=torch) and use lichen.from_keras; or say --expect-params with the "
    "number of parameters in the model's summary, to see whether any is missing"
)
_TORCH = (
    "use lichen.from_torch, or export with torch.onnx.export(..., dynamo=True, optimize=False); where "
    "nothing is missing, say --expect-params with the number of parameters that the model has"
)


def declared_parameters(model: onnx.ModelProto) -> frozenset[str] | None:
    """The parameters that PyTorch says it exported, by name; ``None`` where the graph does not tell."""
    for entry in model.graph.metadata_props:
        if entry.key == _SIGNATURE:
            return frozenset(_DECLARED.findall(entry.value))
    return None


def check_nothing_lost(model: onnx.ModelProto, parameters: Collection[str]) -> None:
    """Refuse a graph that was made for inference; ``parameters`` are what was found in it.

    Raises:
        ArtifactError: parameters are missing or merged, or there are signs of it; the message names them.
    """
    declared = declared_parameters(model)
    missing = sorted((declared or frozenset()) - set(parameters))
    if missing:
        raise ArtifactError(
            f"{len(missing)} of the model's parameters are not in the graph: {', '.join(missing[:8])}"
            f"{_merged(model)}",
            hint=_TORCH,
        )
    if declared is not None:
        return
    for node in model.graph.node:
        made_up = [name for name in node.input if name in parameters and _WORKED_OUT.fullmatch(name)]
        tensorflow = any(sign in node.name for sign in _FROM_TENSORFLOW)
        if not made_up and not tensorflow and model.producer_name != "tf2onnx":
            continue
        where = f"node {node.name or node.output[0]!r} ({node.op_type})"
        if tensorflow or model.producer_name == "tf2onnx" or "const_fold" in "".join(made_up):
            its = f", its {made_up[0]!r} worked out of others" if made_up else ""
            raise ArtifactError(
                f"{where} was exported by way of TensorFlow{its}: biases that are zero are left out of "
                "such a graph, and batch normalisations merged into convolutions",
                hint=_KERAS,
            )
        raise ArtifactError(
            f"{where} has a parameter {made_up[0]!r} that the exporter worked out of others: perhaps a batch "
            "normalisation merged into a convolution",
            hint=_TORCH,
        )


def _merged(model: onnx.ModelProto) -> str:
    """Where a batch normalisation went, if the exporter says so."""
    for node in model.graph.node:
        rules = [entry.value for entry in node.metadata_props if entry.key == _RULE]
        if any("BatchNorm" in rule for rule in rules):
            return f"; node {node.name!r} ({node.op_type}) has a batch normalisation merged into it"
    return ""
