"""A record of named tensors and a note, as bytes: how personal tensors and checkpoints are kept.

The same tensors give the same bytes. Little-endian throughout, sealed (``edge_agent.sealed``): four bytes of
header length, the header (a msgpack map: ``f`` format, ``n`` the note, ``t`` a list of [name, dtype, shape]
in the order of their names), then the tensors row-major without gaps.
"""

import math
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from edge_agent.sealed import seal, unseal
from fl_protocol.errors import StorageError

__all__ = ["DTYPES", "Array", "pack_record", "unpack_record"]

Array = NDArray[Any]

FORMAT = 1
DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint32", "uint64", "uint8", "bool")
MAX_TENSORS = 1 << 16
MAX_HEADER_BYTES = 8 << 20
_LENGTH = struct.Struct("<I")


def pack_record(note: Mapping[str, Any], tensors: Mapping[str, Array]) -> bytes:
    """The bytes of a record; ``note`` holds what msgpack does.

    Raises:
        StorageError: more tensors than a record holds, or one of a dtype that is not in ``DTYPES``.
    """
    named = [(name, np.asarray(tensors[name])) for name in sorted(tensors)]
    strange = sorted({tensor.dtype.name for _, tensor in named} - set(DTYPES))
    if strange or len(named) > MAX_TENSORS:
        raise StorageError(
            f"{len(named)} tensors cannot be kept{', of dtype '.join(['', *strange])}",
            hint=f"a record holds at most {MAX_TENSORS}, of {', '.join(DTYPES)}",
        )
    header = msgpack.packb(
        {
            "f": FORMAT,
            "n": dict(note),
            "t": [[name, tensor.dtype.name, list(tensor.shape)] for name, tensor in named],
        }
    )
    pieces = [np.ascontiguousarray(_little(tensor)).tobytes() for _, tensor in named]
    return seal(b"".join([_LENGTH.pack(len(header)), header, *pieces]))


def unpack_record(sealed: bytes, what: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """The note and the tensors (read-only views into ``sealed``, in the machine's byte order).

    Raises:
        StorageError: damaged, or not such a record; the message names ``what``.
    """
    content = unseal(sealed, what)
    try:
        (length,) = _LENGTH.unpack_from(content)
        start = _LENGTH.size + length
        if length > MAX_HEADER_BYTES or start > len(content):
            raise ValueError("a header that is longer than the record")
        header = msgpack.unpackb(content[_LENGTH.size : start])
        if header["f"] != FORMAT:
            raise ValueError(f"format {header['f']}, this agent reads {FORMAT}")
        return dict(header["n"]), dict(_tensors(header["t"], content[start:]))
    except (ValueError, TypeError, KeyError, struct.error, msgpack.UnpackException) as error:
        raise StorageError(f"{what} cannot be read: {error}") from None


def _tensors(entries: list[Any], content: memoryview) -> Iterator[tuple[str, Array]]:
    at = 0
    for name, dtype, shape in entries:
        if dtype not in DTYPES or not all(type(dim) is int and dim >= 0 for dim in shape):
            raise ValueError(f"tensor {name!r} of dtype {dtype} and shape {shape}")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if at + size > len(content):
            raise ValueError("it ends inside a tensor")
        stored = np.frombuffer(content[at : at + size], np.dtype(dtype).newbyteorder("<"))
        tensor = stored.astype(dtype, copy=False).reshape(shape)
        tensor.setflags(write=False)
        yield str(name), tensor
        at += size
    if at != len(content):
        raise ValueError(f"{len(content) - at} bytes too many")


def _little(tensor: Array) -> Array:
    return tensor if sys.byteorder == "little" else tensor.astype(tensor.dtype.newbyteorder("<"))
