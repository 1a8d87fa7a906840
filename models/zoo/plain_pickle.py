"""Pickles of NumPy arrays and plain values, read without letting them run code.

A pickle names functions and has them called. Of all that there are this reader knows the three that an array
is made with, in its own words, and refuses every other name.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from fl_protocol.errors import ConfigError

__all__ = ["unpickled"]

_NPY = b"\x93NUMPY"


def unpickled(content: bytes) -> Any:
    """The value of a pickle, or of an ``.npy`` file around one: arrays, numbers, texts, lists and tables.

    Raises:
        ConfigError: it is damaged, or asks for anything else.
    """
    stream = io.BytesIO(content)
    try:
        if content.startswith(_NPY):
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
        value = _Reader(stream).load()
    except ConfigError:
        raise
    except Exception as error:  # whatever NumPy or the reader find wrong with bytes that are not theirs
        raise ConfigError(f"not a pickle of arrays: {error}") from None
    return value.item() if isinstance(value, np.ndarray) and not value.ndim else value


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # The home of the first changed its name in NumPy 2; pickles know it by either.
        known: dict[tuple[str, str], Callable[..., Any] | type] = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): _Kind,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in known:
            raise ConfigError(f"the pickle asks for {module}.{name}, which is no array")
        return known[module, name]


class _Kind:
    """Stands for the class of arrays, which called with bytes makes pointers of them."""


def _empty_array(_kind: type, _shape: tuple[int, ...], _typecode: bytes) -> np.ndarray[Any, Any]:
    """What the array's state is then read into, which brings shape and dtype along."""
    return np.empty(0, np.int8)


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes, as Python 2 pickles them."""
    if encoding != "latin1":
        raise ConfigError(f"the pickle holds bytes in {encoding!r}")
    return text.encode("latin1")
