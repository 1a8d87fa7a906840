"""What PyTorch's own differentiation makes of a module, and where it leaves something out."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.build.agreement import Gradients
from models.build.torch_export import import_torch, keeping_modes, with_fixed_padding

if TYPE_CHECKING:
    import torch

__all__ = ["check_padding", "gradients_of"]


def gradients_of(module: "torch.nn.Module", x: "torch.Tensor") -> Gradients:
    """The gradients of what the module computes of the rows ``x`` in evaluation; 0 where there is none."""
    torch = import_torch()

    def gradients(weights: Mapping[str, NDArray[Any]], factors: NDArray[Any]) -> dict[str, NDArray[Any]]:
        tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in weights.items()}
        found: Any = [None] * len(tensors)
        with keeping_modes(module), with_fixed_padding(module), torch.enable_grad():
            module.eval()
            output = torch.func.functional_call(module, tensors, (x,))
            if output.requires_grad:
                pull = torch.from_numpy(factors).reshape(output.shape)
                found = torch.autograd.grad(output, list(tensors.values()), pull, allow_unused=True)
        return {
            name: np.zeros_like(weights[name]) if gradient is None else gradient.to_dense().numpy()
            for name, gradient in zip(tensors, found, strict=True)
        }

    return gradients


def check_padding(module: "torch.nn.Module", model: onnx.ModelProto) -> None:
    """The table of an embedding with a padding row, in the module's export, serves nothing else.

    Elsewhere that row would be trained; in the embedding it is a constant (``with_fixed_padding``).

    Raises:
        ArtifactError: it does; the message names it.
    """
    nn = import_torch().nn
    others = Counter(
        name
        for node in model.graph.node
        for place, name in enumerate(node.input)
        if (node.op_type, place) != ("Gather", 0)
    )
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None and others[names[id(part.weight)]]:
            raise ArtifactError(
                f"{names[id(part.weight)]}, the table of an embedding with padding_idx, has another use",
                hint="set that padding_idx to None, and mask the padding in forward",
            )
