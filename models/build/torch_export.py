"""From a PyTorch module to a forward ONNX graph that still holds all that training needs.

An export for inference folds batch normalisations, drops dropout and merges weights. This one keeps them:
nothing is optimised, and the module is exported as it trains, so that Dropout nodes survive; its batch
normalisations alone as they infer, because their nodes then name the running statistics.
"""

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import onnx

from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.runtime.onnx_reader import OPSET

if TYPE_CHECKING:
    import torch

__all__ = ["export_module", "import_torch", "keeping_modes", "with_fixed_padding"]

_SPECIALISED = ("specialized it to be a constant", "ConstraintViolation", "not all values of batch")
"""What PyTorch says where a graph turns out to be one for a single number of rows."""
_DATA_DEPENDENT = ("data-dependent", "GuardOnDataDependent")
_MAX_CAUSE = 300
_COLOURS = re.compile(r"\x1b\[\d*m")


def import_torch() -> Any:
    """PyTorch, once it is known that it can export.

    Raises:
        RuntimeUnavailable: PyTorch or its exporter is not installed.
    """
    try:
        import onnxscript  # noqa: F401
        import torch
    except ImportError as error:
        raise RuntimeUnavailable(
            f"PyTorch's exporter cannot be imported: {error}", hint="pip install torch onnxscript"
        ) from None
    return torch


def export_module(module: "torch.nn.Module", rows: "torch.Tensor") -> onnx.ModelProto:
    """Export a module of one input and one output; ``rows`` are two rows of input at least.

    The graph has input ``x`` and output ``output``, a free batch dimension, and an initializer for each
    parameter under the parameter's own name. The module comes back in the modes it had.

    Raises:
        ArtifactError: the module is none that becomes a graph; the message says why, in a line.
    """
    torch = import_torch()
    rows_vary = {0: torch.export.Dim("batch")}
    with (
        keeping_modes(module),
        with_fixed_padding(module),
        _quietly(),
        torch.random.fork_rng(devices=[]),
    ):
        module.train()
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.eval()
        try:
            program = torch.onnx.export(
                module,
                (rows,),
                input_names=["x"],
                output_names=["output"],
                dynamic_shapes=((rows_vary,),) if _takes_any(module) else (rows_vary,),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except Exception as error:  # the exporter's stages raise whatever they like
            raise _in_a_line(error) from error
        model: onnx.ModelProto = program.model_proto
    for node in model.graph.node:
        if node.op_type == "Dropout":
            # The graph is the model as it infers; the builder makes the other one of it.
            del node.input[2:]
    return model


def _takes_any(module: "torch.nn.Module") -> bool:
    """Whether forward is written ``forward(self, *inputs)``, which nests what is said of the inputs."""
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    return first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL


@contextlib.contextmanager
def keeping_modes(module: "torch.nn.Module") -> Iterator[None]:
    """Whatever happens to them inside, every part of the module trains or infers again as before."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def with_fixed_padding(module: "torch.nn.Module") -> Iterator[None]:
    """While it lasts, the padding row of an embedding is a constant: PyTorch never trains it, but in a graph
    nothing of the table alone would say so."""
    embedding = import_torch().nn.Embedding
    padded = [it for it in module.modules() if isinstance(it, embedding) and it.padding_idx is not None]
    before = [vars(part).get("forward") for part in padded]
    try:
        for part in padded:
            part.forward = _padded(part)
        yield
    finally:
        for part, own in zip(padded, before, strict=True):
            del part.forward
            if own is not None:
                part.forward = own


def _padded(part: Any) -> Callable[[Any], Any]:
    torch, forward, place = import_torch(), part.forward, part.padding_idx
    row = part.weight[place].detach().clone()
    return lambda ids: torch.where((ids == place).unsqueeze(-1), row, forward(ids))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter prints and warns of: its own inside, or what is meant to be so here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _in_a_line(error: BaseException) -> ArtifactError:
    """The exporter's pages of advice, as one of ours."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    told = "\n".join(f"{type(cause).__name__}: {cause}" for cause in causes)
    if any(sign in told for sign in _DATA_DEPENDENT):
        return ArtifactError(
            "the module's forward decides by values of its input, or makes a shape of them",
            hint="compute both branches and choose with torch.where, or do that part before the model",
        )
    if any(sign in told for sign in _SPECIALISED):
        return ArtifactError(
            "the module's forward works for one number of rows only",
            hint="take the number of rows from x.shape[0]; write no size of a batch into reshape or expand",
        )
    lines = [line.strip() for line in _COLOURS.sub("", str(causes[-1])).splitlines()]
    said = " ".join([line for line in lines if line][:2])
    return ArtifactError(
        f"PyTorch cannot export the module: {type(causes[-1]).__name__}: {said[:_MAX_CAUSE]}",
        hint="its own account is the cause of this error; forward must be tensor operations of one input",
    )
