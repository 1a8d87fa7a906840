"""The Walsh-Hadamard transform, and signs that are packed as bits: what EDEN's rotation is made of."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "SMALLEST_BLOCK", "hadamard", "spread_bits", "transform"]

BLOCK = 1024
SMALLEST_BLOCK = 64
_FACTOR = 32

Floats = npt.NDArray[np.float32]
Octets = npt.NDArray[np.uint8]


def spread_bits(octets: Octets, out: Floats) -> None:
    """Write +1 for each bit 1 and -1 for each bit 0, lowest bit first, into contiguous ``out``."""
    # mode="wrap" lets numpy write into out directly; every octet is a valid index
    _sign_table().take(octets, axis=0, out=out.reshape(-1, 8), mode="wrap")


def transform(blocks: Floats, room: Floats) -> None:
    """Multiply each row by H, as ``H_a X H_b`` on the row seen as an a x b matrix (a b = B).

    Args:
        blocks: float32[..., B], B is a power of two from 64 to 1024.
        room: of the same shape; its content is lost.
    """
    length = blocks.shape[-1]
    grid = (*blocks.shape[:-1], length // _FACTOR, _FACTOR)
    # one small product per block: a single tall one is slower on some builds of BLAS, and starts threads
    np.matmul(blocks.reshape(grid), hadamard(_FACTOR), out=room.reshape(grid))
    np.matmul(hadamard(length // _FACTOR), room.reshape(grid), out=blocks.reshape(grid))


@lru_cache(maxsize=8)
def hadamard(order: int) -> Floats:
    """The Sylvester matrix of +-1 whose order is a power of two, not normalised."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=1)
def _sign_table() -> Floats:
    """float32[256, 8]: the eight signs that each octet stands for."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    table = bits.astype(np.float32) * np.float32(2) - np.float32(1)
    table.flags.writeable = False
    return table
