"""The table of NumPy kernels, one per ONNX operator, and how a function is entered into it.

A kernel takes the node's attributes and its inputs (``None`` where an optional one is left out) and
returns the one output. Arrays that come in are never changed; a result may be a view of an input.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["KERNELS", "Array", "Attributes", "Kernel", "kernel", "whole_numbers"]

Array: TypeAlias = NDArray[Any]
Attributes: TypeAlias = Mapping[str, Any]
Kernel: TypeAlias = Callable[..., Array]

KERNELS: dict[str, Kernel] = {}
"""Operator name to ``kernel(attributes, *inputs)``."""


def kernel(op: str) -> Callable[[Kernel], Kernel]:
    """Enter a function into the table."""

    def enter(function: Kernel) -> Kernel:
        KERNELS[op] = function
        return function

    return enter


def whole_numbers(array: Array | None) -> list[int] | None:
    """An optional input of axes, sizes or positions as Python numbers."""
    return None if array is None else [int(entry) for entry in np.reshape(array, -1)]
