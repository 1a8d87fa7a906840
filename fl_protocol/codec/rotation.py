"""The random rotation of EDEN, of many blocks of one width at once.

``rotated = H D2 H D1 x`` per block, with H the Sylvester matrix of +-1 (not normalised) and D1, D2
diagonal matrices of random signs. One pass is not enough: it leaves a sparse block on few levels,
and a quantizer is then biased.

While they are rotated, blocks are cut into strips of 16 elements, and the strips of one number, of all
blocks, lie side by side: float32[B / 16, blocks, 16]. H is then three products with matrices of at most
16 x 16, on long rows. Signs and codes are brought into that order as packed bits, a strip in one word.

Decoding is exact: codes are whole and small, so that float32 holds every partial sum in any order.
"""

import numpy as np
import numpy.typing as npt

from fl_protocol.codec.hadamard import hadamard, spread_bits, transform

__all__ = ["STRIP", "Rotation", "from_strips", "to_strips"]

STRIP = 16
_FACTOR = 8

Floats = npt.NDArray[np.float32]
Octets = npt.NDArray[np.uint8]
_Product = tuple[Floats, Floats, Floats]
"""Two stacks of matrices, and the room for their products."""


class Rotation:
    """Room to rotate up to ``elements`` elements at once, in either direction."""

    def __init__(self, elements: int) -> None:
        self._at, self._spare = np.empty(elements, np.float32), np.empty(elements, np.float32)
        self._products: dict[tuple[bool, int, int], list[_Product]] = {}
        self._swapped = False

    def rotate(self, blocks: Floats, sign1: Octets, sign2: Octets) -> Floats:
        """``H D2 H D1 x`` of each row x, in strips.

        Args:
            blocks: float32[blocks, B], contiguous; B is a power of two from 64 to 1024.
            sign1, sign2: uint8[blocks * B / 8], one sign per bit, lowest bit first; 1 is plus.

        Returns:
            float32[B / 16, blocks * 16], which may be written to; the next call makes it invalid.
        """
        count, width = blocks.shape
        _copy_strips(blocks, self.strips(blocks.size), count, width // STRIP)
        self._flip(sign1, count)
        self._transform(count, width)
        self._flip(sign2, count)
        self._transform(count, width)
        return self.strips(blocks.size).reshape(width // STRIP, -1)

    def unrotate(self, sign1: Octets, sign2: Octets, scales: Floats, out: Floats) -> None:
        """Write ``scale * (D1 H D2 H c)`` for the codes c of each block, as put into :meth:`strips`.

        Args:
            sign1, sign2: as for :meth:`rotate`, which this inverts up to the factor B^2 and the scale.
            scales: float32[blocks].
            out: float32[blocks, B], contiguous; a zero is +0.
        """
        count, width = out.shape
        self._transform(count, width)
        self._flip(sign2, count)
        self._transform(count, width)
        self._flip(sign1, count)
        values = self.strips(out.size)
        rows = values.reshape(width // STRIP, -1)
        np.multiply(rows, np.repeat(scales, STRIP), out=rows)
        _copy_strips(values, out, width // STRIP, count)
        # the sign of a zero depends on the order of summation: adding +0 makes every zero +0
        np.add(out, np.float32(0), out=out)

    def strips(self, elements: int) -> Floats:
        """Room for the levels to rotate back, to be filled strip by strip: float32[elements]."""
        return self._at[:elements]

    def spare(self, elements: int) -> Floats:
        """Contiguous room that nobody else uses between two calls: float32[elements]."""
        return self._spare[:elements]

    def _flip(self, octets: Octets, count: int) -> None:
        """Multiply by signs."""
        at, signs = self._at[: 8 * octets.size], self._spare[: 8 * octets.size]
        spread_bits(to_strips(octets, count), signs)
        np.multiply(at, signs, out=at)

    def _transform(self, count: int, width: int) -> None:
        """Multiply each block by H."""
        if count == 1:
            transform(self._at[:width].reshape(1, width), self._spare[:width])
            return
        shape = self._swapped, count, width
        if shape not in self._products:
            self._products[shape] = _products(self._at, self._spare, count, width)
        for left, right, out in self._products[shape]:
            np.matmul(left, right, out=out)
        if len(self._products[shape]) % 2:
            self._at, self._spare = self._spare, self._at
            self._swapped = not self._swapped


def _products(at: Floats, spare: Floats, count: int, width: int) -> list[_Product]:
    """H of each block as products from one room to the other and back: within strips, then between them.

    Each is a stack of matrices so small that no build of BLAS starts threads for it.
    """
    outer = min(_FACTOR, width // STRIP)
    inner, row = width // STRIP // outer, count * STRIP
    at, spare = at[: count * width], spare[: count * width]
    within = (outer, inner * count, STRIP)
    products = [(at.reshape(within), hadamard(STRIP), spare.reshape(within))]
    stack, across = (outer, inner, row), (1, 0, 2)
    products.append(
        (hadamard(outer), spare.reshape(stack).transpose(across), at.reshape(stack).transpose(across))
    )
    if inner > 1:
        products.append((hadamard(inner), at.reshape(stack), spare.reshape(stack)))
    return products


def _copy_strips(source: Floats, target: Floats, rows: int, columns: int) -> None:
    """Copy a contiguous matrix of strips to its transposed matrix: whole strips, each as one element."""
    if rows == 1 or columns == 1:
        np.copyto(target.reshape(-1), source.reshape(-1))
    else:
        strip = f"V{4 * STRIP}"
        swapped = source.reshape(-1).view(strip).reshape(rows, columns).T
        np.copyto(target.reshape(-1).view(strip).reshape(columns, rows), swapped)


def to_strips(octets: Octets, blocks: int, bits: int = 1) -> Octets:
    """The packed codes of ``blocks`` blocks of one width, strip by strip: uint8[blocks * B * bits / 8]."""
    return _swapped(octets, blocks, -1, bits) if blocks > 1 else octets


def from_strips(octets: Octets, blocks: int, bits: int = 1) -> Octets:
    """What :func:`to_strips` was given."""
    return _swapped(octets, -1, blocks, bits) if blocks > 1 else octets


def _swapped(octets: Octets, rows: int, columns: int, bits: int) -> Octets:
    """A matrix transposed whose elements are the words of one strip each."""
    words = octets.view(f"<u{STRIP * bits // 8}").reshape(rows, columns)
    return np.ascontiguousarray(words.T).reshape(-1).view(np.uint8)
