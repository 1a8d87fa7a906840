"""Uniform random numbers inside a graph: the same bits in every runtime, from a seed that is an input.

Runtimes have no random operator in common, and none that multiplies integers of 32 bits alike. So everything
here is float32 arithmetic that is exact: integers below 2^24, times a power of two.

Every place of a tensor has three keys, sums over its axes. Those of the axes within a row are constants; the
row's are mixed from the seed and the row's number by a Feistel network (Salmon et al.: Parallel random
numbers: as easy as 1, 2, 3, 2011). Two keys are multiplied, twice, the middle digits are kept, and the third
key is added (middle square and Weyl sequence; Widynski, 2017). Good enough to drop units; no cipher.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.build.graph import Dim, WorkingGraph

__all__ = ["SEED", "SEEDS", "uniform"]

SEED = "seed"
"""The graph's input that the numbers are made of: float[], one of the integers from 0 to ``SEEDS`` - 1."""
SEEDS = 1 << 22
_HALF = 1 << 11
"""A key is a multiple of 1 / 2^11 below 1, or of 1 / 2^22: float32 has room for the product of two."""
_MULTIPLIERS = (1579, 1193, 1867, 1231, 1741, 1409, 1951)
"""One for each round of mixing in turn: odd, below 2^11."""
_WEYL = 1265 / _HALF
_SEED_ROUNDS, _ROW_ROUNDS, _LAST_ROUNDS = range(3), range(3, 7), range(7, 9)
_SHIFT = 512
"""The product of two keys loses so much of its first digits, which are not uniform."""


def uniform(graph: WorkingGraph, shape: Sequence[Dim], count: str | None, *, stream: str) -> str:
    """float[shape], multiples of 2^-22 in [0, 1); other ones for each ``stream``.

    ``count`` is the size of the one dimension that is not fixed (float[]), ``None`` where all are. The
    numbers at a place of that dimension, the row, do not depend on how many rows there are.
    """
    graph.input(SEED, [])
    free = next((axis for axis, dim in enumerate(shape) if not isinstance(dim, int)), None)
    if free is None or count is None:
        keys = _row_keys(graph, graph.constant(0))
    else:
        numbers = graph.op("Range", graph.constant(0), count, graph.constant(1))
        graph.know(numbers, [shape[free]], like=SEED)
        keys = _row_keys(graph, numbers)
        if free < len(shape) - 1:
            behind = graph.integers(*range(1, len(shape) - free))
            keys = [graph.op("Unsqueeze", key, behind) for key in keys]
    places = _place_keys(graph, shape, stream)
    first, second, third = (
        [graph.op("Add", row, place) for row, place in zip(keys, places, strict=True)] if places else keys
    )
    product = graph.op("Mul", first, second)
    middle = _fraction(graph, graph.op("Mul", graph.op("Floor", product), second))
    return _fraction(graph, graph.op("Add", middle, third))


def _row_keys(graph: WorkingGraph, number: str) -> list[str]:
    """The three keys of each row, of the shape of ``number``, the first one shifted."""
    left, right = _halves(graph, SEED)
    for turn in _SEED_ROUNDS:
        left, right = _mixed(graph, left, right, turn)
    low, high = _halves(graph, number)
    left, right = _fraction(graph, graph.op("Add", left, low)), _fraction(graph, graph.op("Add", right, high))
    for turn in _ROW_ROUNDS:
        left, right = _mixed(graph, left, right, turn)
    first, second = graph.op("Mul", left, graph.constant(_SHIFT)), right
    for turn in _LAST_ROUNDS:
        left, right = _mixed(graph, left, right, turn)
    return [first, second, graph.op("Add", left, graph.op("Mul", right, graph.constant(1 / _HALF)))]


def _place_keys(graph: WorkingGraph, shape: Sequence[Dim], stream: str) -> list[str]:
    """The three keys of every place within a row, the first one shifted; none where a row is one place."""
    sums: list[str] = []
    for axis, size in enumerate(shape):
        if not isinstance(size, int) or size == 1:
            continue
        wide = [size, *[1] * (len(shape) - 1 - axis)]
        keys = [graph.constant(key.reshape(wide)) for key in _constant_keys(size, f"{stream} {axis}")]
        if sums:
            pairs = zip(sums, keys, strict=True)
            keys = [_fraction(graph, graph.op("Add", total, key)) for total, key in pairs]
        sums = keys
    return [graph.op("Mul", sums[0], graph.constant(_SHIFT)), *sums[1:]] if sums else []


def _constant_keys(size: int, stream: str) -> tuple[NDArray[np.float64], ...]:
    """float[size]: two of 11 digits, each as far from the others as they can be, and one of 22."""
    bits = np.random.PCG64(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little"))
    spread = np.arange(size) * _HALF // size / _HALF
    first, second = (spread[np.argsort(bits.random_raw(size), kind="stable")] for _ in range(2))
    return first, second, (bits.random_raw(size) >> np.uint64(42)) / SEEDS


def _mixed(graph: WorkingGraph, left: str, right: str, turn: int) -> tuple[str, str]:
    """One round: the low digits of a product go to the left, its high ones are added to the right."""
    multiplier = graph.constant(_MULTIPLIERS[turn % len(_MULTIPLIERS)])
    product = graph.op("Mul", right, multiplier)
    high = graph.op("Floor", product)
    low = graph.op("Sub", product, high)
    added = graph.op("Add", graph.op("Mul", high, graph.constant(1 / _HALF)), left)
    return low, _fraction(graph, graph.op("Add", added, graph.constant(_WEYL)))


def _halves(graph: WorkingGraph, number: str) -> tuple[str, str]:
    """The low and the high 11 digits of an integer below 2^22, as fractions."""
    scaled = graph.op("Mul", number, graph.constant(1 / _HALF))
    high = graph.op("Floor", scaled)
    return graph.op("Sub", scaled, high), graph.op("Mul", high, graph.constant(1 / _HALF))


def _fraction(graph: WorkingGraph, value: str) -> str:
    return graph.op("Sub", value, graph.op("Floor", value))
