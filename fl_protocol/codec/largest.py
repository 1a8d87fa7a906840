"""The largest elements of a segment, and the few whole numbers that stand for them."""

import math

import numpy as np
import numpy.typing as npt

__all__ = ["fitted_levels", "largest_positions"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_STRIDE = 17
"""A sample of every 17th element foretells the bound; a number that hardly divides a tensor's rows."""
_SMALL = 2048
_STEPS = 12
_SHRINK = 0.75
_SAMPLED = 1024


def largest_positions(magnitudes: Floats, count: int) -> npt.NDArray[np.intp]:
    """The positions of the ``count`` largest of ``magnitudes`` (float32[m], not negative), increasing.

    Zeros are left out; of equal ones the first are taken.
    """
    size = len(magnitudes)
    found = np.flatnonzero(magnitudes >= _foretold(magnitudes, count))
    if len(found) < count:
        found = np.arange(size)
    values = magnitudes[found]
    if len(found) > count:
        least = np.partition(values, len(values) - count)[len(values) - count]
    else:
        least = values.min()
    taken = values > least
    if least > 0:
        ties = np.flatnonzero(values == least)
        taken[ties[: count - int(np.count_nonzero(taken))]] = True
    positions: npt.NDArray[np.intp] = found[taken]
    return positions


def fitted_levels(magnitudes: Floats, highest: int) -> tuple[npt.NDArray[np.int32], float]:
    """Whole numbers in [0, ``highest``] and the scale that they are nearest to ``magnitudes`` with.

    The scale is the least-squares one of its levels, so that what is left is at right angles to what is
    sent: it is never longer than before. Sums are exact for small multiples of a power of two.
    """
    if not len(magnitudes):
        return np.zeros(0, np.int32), 0.0
    peak = float(magnitudes.max())
    if peak == 0:
        return np.zeros(len(magnitudes), np.int32), 0.0
    sample = magnitudes[:: max(1, len(magnitudes) // _SAMPLED)]
    steps = np.array([[peak / highest * _SHRINK**step] for step in range(_STEPS)])
    best = float(steps[np.argmax(_explained(sample, _rounded(sample, steps, highest))), 0])
    levels = _rounded(magnitudes, best, highest)
    inner, energy = (float(total) for total in _sums(magnitudes, levels))
    return levels.astype(np.int32), inner / energy if energy else 0.0


def _foretold(magnitudes: Floats, count: int) -> np.float32:
    """A bound that most likely at least ``count`` elements reach, and not many more."""
    if len(magnitudes) <= _SMALL:
        return np.float32(0)
    sample = magnitudes[::_STRIDE]
    expected = count / len(magnitudes) * len(sample)
    rank = math.ceil(expected + 3 * math.sqrt(expected) + 2)
    if rank >= len(sample):
        return np.float32(0)
    return np.float32(np.partition(sample, len(sample) - rank)[len(sample) - rank])


def _rounded(magnitudes: Floats, step: float | Doubles, highest: int) -> Doubles:
    levels = np.divide(magnitudes, step, dtype=np.float64)
    np.rint(levels, out=levels)
    return np.minimum(levels, highest, out=levels)


def _explained(magnitudes: Floats, levels: Doubles) -> Doubles:
    """The energy that each row of levels takes out of the magnitudes, at its best scale."""
    inner, energy = _sums(magnitudes, levels)
    return np.divide(inner, energy, out=np.zeros_like(energy), where=energy > 0) * inner


def _sums(magnitudes: Floats, levels: Doubles) -> tuple[Doubles, Doubles]:
    """The products of levels and magnitudes, and the squares of levels, each summed by rows."""
    return np.sum(magnitudes * levels, axis=-1), np.sum(levels * levels, axis=-1)
