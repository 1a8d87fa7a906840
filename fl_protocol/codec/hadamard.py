"""The random rotation of EDEN: two passes of random signs and a Walsh-Hadamard transform.

``rotated = H D2 H D1 x`` per block, with H the Sylvester matrix of +-1 (not normalised) and D1, D2
diagonal matrices of random signs. One pass is not enough: it leaves a sparse block on few levels,
and a quantizer is then biased.

Decoding is exact: codes are +-1 and blocks at most 1024 long, so every partial sum is an integer
of at most 2^20, which float32 holds whatever the order of summation.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "SMALLEST_BLOCK", "rotate", "spread_bits", "transform", "unrotate"]

BLOCK = 1024
SMALLEST_BLOCK = 64
_FACTOR = 32

Floats = npt.NDArray[np.float32]
Octets = npt.NDArray[np.uint8]


def rotate(blocks: Floats, sign1: Octets, sign2: Octets, scratch: Floats) -> None:
    """Replace each row x of ``blocks`` by ``H D2 H D1 x``.

    Args:
        blocks: float32[rows, B], contiguous; B is a power of two from 64 to 1024.
        sign1, sign2: uint8[rows * B / 8], one sign per bit, lowest bit first; 1 is plus.
        scratch: float32 of at least the size of ``blocks``, contiguous; its content is lost.
    """
    room = scratch.reshape(-1)[: blocks.size].reshape(blocks.shape)
    for signs in (sign1, sign2):
        spread_bits(signs, room)
        np.multiply(blocks, room, out=blocks)
        transform(blocks, room)


def unrotate(blocks: Floats, sign1: Octets, sign2: Octets, scratch: Floats) -> None:
    """Replace each row c of ``blocks`` by ``D1 H D2 H c``; arguments as for :func:`rotate`.

    This inverts :func:`rotate` up to the factor B^2. A zero may come out with either sign.
    """
    room = scratch.reshape(-1)[: blocks.size].reshape(blocks.shape)
    for signs in (sign2, sign1):
        transform(blocks, room)
        spread_bits(signs, room)
        np.multiply(blocks, room, out=blocks)


def spread_bits(octets: Octets, out: Floats) -> None:
    """Write +1 for each bit 1 and -1 for each bit 0, lowest bit first, into contiguous ``out``."""
    # mode="clip" lets numpy write into out directly; every octet is a valid index
    _sign_table().take(octets, axis=0, out=out.reshape(-1, 8), mode="clip")


def transform(blocks: Floats, room: Floats) -> None:
    """Multiply each row by H, as ``H_a X H_b`` on the row seen as an a x b matrix (a b = B).

    Args:
        blocks: float32[..., B], B as for :func:`rotate`.
        room: of the same shape; its content is lost.
    """
    length = blocks.shape[-1]
    grid = (*blocks.shape[:-1], length // _FACTOR, _FACTOR)
    # one small product per block: a single tall one is slower on some builds of BLAS, and starts threads
    np.matmul(blocks.reshape(grid), _hadamard(_FACTOR), out=room.reshape(grid))
    np.matmul(_hadamard(length // _FACTOR), room.reshape(grid), out=blocks.reshape(grid))


@lru_cache(maxsize=8)
def _hadamard(order: int) -> Floats:
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
