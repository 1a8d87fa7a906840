"""Between the flat vector that travels and the named tensors that a graph takes."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import LayoutError
from fl_protocol.layout import TensorLayout

__all__ = ["join_flat", "split_flat"]


def split_flat(flat: NDArray[np.float32], layout: TensorLayout) -> dict[str, NDArray[np.float32]]:
    """Views into ``flat`` (float32[layout.size]) by tensor name, in wire order; nothing is copied.

    Raises:
        LayoutError: ``flat`` has another length.
    """
    if flat.shape != (layout.size,):
        raise LayoutError(f"a flat vector of shape {flat.shape} for a layout of {layout.size} parameters")
    return {
        tensor.name: flat[start : start + tensor.size].reshape(tensor.shape)
        for tensor, start in layout.offsets()
    }


def join_flat(tensors: Mapping[str, NDArray[np.float32]], layout: TensorLayout) -> NDArray[np.float32]:
    """A new float32[layout.size] of the tensors in wire order.

    Raises:
        LayoutError: a tensor is missing or has another shape.
    """
    flat = np.empty(layout.size, np.float32)
    for spec, start in layout.offsets():
        tensor = tensors.get(spec.name)
        if tensor is None or tensor.shape != spec.shape:
            found = "missing" if tensor is None else f"of shape {tensor.shape}"
            raise LayoutError(f"tensor {spec.name!r} is {found}, its layout says {spec.shape}")
        flat[start : start + spec.size] = tensor.reshape(-1)
    return flat
