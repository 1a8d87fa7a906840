"""``from_torch``: a PyTorch module becomes a training artifact."""

import glob
from collections import Counter
from typing import TYPE_CHECKING, Any, Unpack

import onnx

from fl_protocol.errors import ArtifactError
from models.build.agreement import check_same_gradients, check_same_output, rows_between
from models.build.build_options import BuildOptions
from models.build.builder import build_artifact
from models.build.torch_export import export_module, import_torch, keeping_modes
from models.build.torch_gradients import check_padding, gradients_of
from models.runtime.artifact import TrainingArtifact

if TYPE_CHECKING:
    import torch

__all__ = ["from_torch"]

_MOST_ROWS = 8
_ROWS_BETWEEN = 3
_STATISTICS = ("running_mean", "running_var")


def from_torch(
    module: "torch.nn.Module", example: "torch.Tensor", *, loss: str, **options: Unpack[BuildOptions]
) -> TrainingArtifact:
    """Build a training artifact of a module; ``artifact.save(folder)`` or ``out=`` writes it.

    ``example`` is an input as the module takes it, [rows, sizes...]: float32, or int32 or int64 ids; its
    values matter only where they are ids, which must be valid. Parameters keep their names. Those with
    ``requires_grad=False`` are frozen unless ``train`` says otherwise; registered buffers become constants,
    but for running statistics of a batch normalisation, and so does the padding row of an embedding.
    ``options`` are those of ``build_artifact``. The module is not changed, and what was built computes what
    ``module.eval()`` computes, with the gradients that PyTorch finds for it.

    Raises:
        ArtifactError: the module cannot be exported or trained; the message says what stands in the way.
        RuntimeUnavailable: PyTorch or its exporter (onnxscript) is not installed.
    """
    torch = import_torch()
    given = _given(torch, example)
    # Another number of rows than given, and more than one: an exporter takes a size of one for a constant.
    rows = torch.cat([given, given[:1], given[:1]])
    parameters, statistics = _parameters(torch, module), _statistics(torch, module)
    _output(torch, module, given)
    _check_any_number(torch, module, given, rows)
    model = export_module(module, rows)
    _one_name_each(model, module, parameters)
    _check_complete(model, parameters)
    check_padding(module, model)
    if options.get("train") is None and not all(tensor.requires_grad for tensor in parameters.values()):
        trained = [name for name, tensor in parameters.items() if tensor.requires_grad]
        options["train"] = [glob.escape(name) for name in trained]
    out = options.pop("out", None)
    options["name"] = options.get("name") or type(module).__name__.lower()
    artifact = build_artifact(
        model,
        loss=loss,
        parameters=[glob.escape(name) for name in (*parameters, *statistics)],
        expect_params=sum(tensor.numel() for tensor in parameters.values()),
        **options,
    )
    x = torch.cat([rows, torch.from_numpy(rows_between(artifact, _ROWS_BETWEEN)).to(rows.dtype)])
    check_same_output(artifact, x.numpy(), _output(torch, module, x).numpy(), "module.eval()(example)")
    check_same_gradients(artifact, x.numpy(), gradients_of(module, x), "PyTorch")
    return artifact if out is None else artifact.save(out)


def _given(torch: Any, example: Any) -> "torch.Tensor":
    """The example as a tensor of rows."""
    if isinstance(example, tuple | list | dict):
        raise ArtifactError(
            f"the example is a {type(example).__name__} of {len(example)} inputs, not one tensor",
            hint="wrap the module in one whose forward takes one tensor, and cuts it up",
        )
    given: torch.Tensor = torch.as_tensor(example).detach().cpu()[:_MOST_ROWS]
    if given.is_floating_point():
        given = given.float()
    if given.ndim < 2 or given.shape[0] < 1:
        raise ArtifactError(
            f"the example has the shape {list(given.shape)}, not [rows, sizes...]",
            hint="give it as the module takes it: one row is torch.zeros(1, 6) for a model of 6 numbers",
        )
    return given


def _parameters(torch: Any, module: "torch.nn.Module") -> dict[str, "torch.Tensor"]:
    parameters = dict(module.named_parameters())
    other = [
        f"{name} ({tensor.dtype})" for name, tensor in parameters.items() if tensor.dtype != torch.float32
    ]
    if other:
        raise ArtifactError(
            f"not float32: {', '.join(other[:5])}", hint="convert the module with module.float()"
        )
    if not parameters:
        raise ArtifactError("the module has no parameters, so there is nothing to train")
    elsewhere = sorted({str(tensor.device) for tensor in parameters.values()} - {"cpu"})
    if elsewhere:
        raise ArtifactError(f"the module is on {', '.join(elsewhere)}", hint="give module.cpu()")
    return parameters


def _statistics(torch: Any, module: "torch.nn.Module") -> list[str]:
    """The names of a module's running statistics; refuses normalisations that no graph can keep.

    Raises:
        ArtifactError: a batch normalisation without running statistics, or with a cumulative average.
    """
    names: list[str] = []
    for prefix, part in module.named_modules():
        if not isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            continue
        if part.running_mean is None:
            raise ArtifactError(
                f"{prefix} ({type(part).__name__}) keeps no running statistics: a row's output depends on "
                "its neighbours",
                hint="make it with track_running_stats=True, or use a GroupNorm or LayerNorm",
            )
        if part.momentum is None:
            raise ArtifactError(
                f"{prefix} ({type(part).__name__}) has momentum=None, a cumulative average",
                hint="give it a number, as 0.1",
            )
        names += [f"{prefix}.{name}".lstrip(".") for name in _STATISTICS]
    return names


def _output(torch: Any, module: "torch.nn.Module", rows: "torch.Tensor") -> "torch.Tensor":
    """What the module computes in evaluation, float32[rows, ...].

    Raises:
        ArtifactError: it fails, or what comes out is not one such tensor.
    """
    with keeping_modes(module), torch.no_grad():
        module.eval()
        try:
            output = module(rows)
        except Exception as error:  # the user's code
            raise ArtifactError(
                f"the module does not run on the example: {type(error).__name__}: {error}",
                hint="give an example as the module takes it: its shape, and int64 where it takes ids; a "
                "module of several inputs must be wrapped in one that takes one tensor",
            ) from error
    if not isinstance(output, torch.Tensor):
        raise ArtifactError(
            f"the module's output is a {type(output).__name__}, not one tensor",
            hint="wrap it: a module whose forward returns the logits alone, as self.model(x).logits",
        )
    if output.dtype != torch.float32 or output.ndim < 1 or output.shape[0] != len(rows):
        raise ArtifactError(
            f"the module makes {output.dtype} {list(output.shape)} of {len(rows)} rows",
            hint="the output must be float32 [rows, ...]: the logits or the predictions of each row",
        )
    return output


def _check_any_number(
    torch: Any, module: "torch.nn.Module", given: "torch.Tensor", rows: "torch.Tensor"
) -> None:
    """The module takes other numbers of rows than the example's."""
    try:
        _output(torch, module, rows)
    except ArtifactError as error:
        raise ArtifactError(
            f"the module takes {len(given)} rows, but not {len(rows)}: {error.args[0]}",
            hint="take the number of rows from x.shape[0]: no size of a batch may be written into forward",
        ) from error


def _one_name_each(
    model: onnx.ModelProto, module: "torch.nn.Module", parameters: dict[str, "torch.Tensor"]
) -> None:
    """A parameter that the module has under several names (tied weights) goes by its first alone."""
    first = {id(tensor): name for name, tensor in parameters.items()}
    everywhere = module.named_parameters(remove_duplicate=False)
    rename = {name: first[id(tensor)] for name, tensor in everywhere if first[id(tensor)] != name}
    graph = model.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = rename.get(name, name)
    there = {tensor.name for tensor in graph.initializer} - rename.keys()
    for tensor in list(graph.initializer):
        name = rename.get(tensor.name)
        if name in there:
            graph.initializer.remove(tensor)
        elif name is not None:
            tensor.name = name
            there.add(name)


def _check_complete(model: onnx.ModelProto, parameters: dict[str, "torch.Tensor"]) -> None:
    """Every parameter of the module is in the graph, and used."""
    used = Counter(name for node in model.graph.node for name in node.input)
    lost = [name for name in parameters if not used[name]]
    if lost:
        raise ArtifactError(
            f"the output does not depend on {len(lost)} of the module's parameters: {', '.join(lost[:5])}",
            hint="remove what forward does not use (of a pre-trained model: the head that you do not need)",
        )
