"""The UCI handwritten digits: 1,797 images of 8x8 (see ATTRIBUTION.md). Needs only NumPy."""

import io
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

__all__ = ["HELD_OUT", "Digits", "load", "split"]

HELD_OUT = 360
"""Images that the usual split keeps for evaluation: a fifth."""
_HELD_OUT_SEED = 20240229


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images ``x`` float32[n, 64] from 0 to 1, row by row, and their digits ``y`` int32[n]."""

    x: NDArray[np.float32]
    y: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[np.intp]) -> "Digits":
        """The images with these numbers, copied."""
        return Digits(x=self.x[rows], y=self.y[rows])


def load() -> Digits:
    """All 1,797 images, in the order of the source."""
    content = resources.files(__package__).joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Digits(x=arrays["x"].astype(np.float32) / np.float32(16), y=arrays["y"].astype(np.int32))


def split(seed: int = 0, *, held_out_seed: int = _HELD_OUT_SEED) -> tuple[Digits, Digits]:
    """1,437 images to train on, in an order drawn from ``seed``, and 360 held out.

    The held-out ones are the same for every ``seed``, so that accuracies can be compared; another
    ``held_out_seed`` draws others.
    """
    digits = load()
    order = _permutation(len(digits), held_out_seed)
    train = order[HELD_OUT:]
    return digits.take(train[_permutation(len(train), seed)]), digits.take(order[:HELD_OUT])


def _permutation(count: int, seed: int) -> NDArray[np.intp]:
    # Sorting raw output gives the same order in every version of NumPy; its shuffle does not promise to.
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
