"""Where a training of PyTorch is: all that its next step depends on, as named arrays and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["TorchCourse"]

_RANDOM = "random"


class TorchCourse:
    """The tensors that a training changes, its optimizer, and the state of PyTorch's random numbers.

    ``tensors`` are written to in place by ``restore``.
    """

    def __init__(self, tensors: "Mapping[str, Tensor]", optimizer: "Optimizer") -> None:
        self._tensors = tensors
        self._optimizer = optimizer

    def capture(self) -> dict[str, NDArray[Any]]:
        """Everything by name: ``tensor.NAME``; of the optimizer ``slot.INDEX.NAME``, ``number.INDEX.NAME``.

        Raises:
            StorageError: an optimizer that keeps something else than tensors and numbers; no checkpoint then.
        """
        import torch

        found = {f"tensor.{name}": _array(tensor) for name, tensor in self._tensors.items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            for name, slot in slots.items():
                if isinstance(slot, torch.Tensor):
                    found[f"slot.{index}.{name}"] = _array(slot)
                elif isinstance(slot, bool | int | float):
                    found[f"number.{index}.{name}"] = np.array(slot)
                elif slot is not None:
                    raise StorageError(f"the optimizer keeps a {type(slot).__name__}")
        return {**found, _RANDOM: torch.get_rng_state().numpy().copy()}

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what ``capture`` gave."""
        import torch

        state: dict[int, dict[str, Any]] = {}
        for key, array in saved.items():
            kind, _, rest = key.partition(".")
            if kind == "tensor":
                with torch.no_grad():
                    self._tensors[rest].copy_(torch.tensor(array))
            elif kind in ("slot", "number"):
                index, _, name = rest.partition(".")
                slot = torch.tensor(array) if kind == "slot" else array.item()
                state.setdefault(int(index), {})[name] = slot
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        torch.set_rng_state(torch.tensor(saved[_RANDOM]))


def _array(tensor: "Tensor") -> NDArray[Any]:
    import torch

    there = tensor.detach().to("cpu")
    # NumPy has no bfloat16, of which each number is a float32.
    array: NDArray[Any] = (there.float() if there.dtype == torch.bfloat16 else there).numpy().copy()
    return array
