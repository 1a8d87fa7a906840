"""Readings of nine sensors of the space shuttle, normal rows and anomalies.

Statlog (Shuttle), J. Catlett, UCI Machine Learning Repository, as the ODDS benchmark made it one of
anomalies: its commonest class is normal, the second is left out, all others are anomalies. Not part of
Lichen: see docs/data.md.
"""

import gzip
import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ConfigError
from models.zoo.dataset import Arrays, DataSet
from models.zoo.package_file import PackageFile

__all__ = ["CENTRE", "DATASET", "SPREAD", "Shuttle", "auc", "load", "split"]

FEATURES, ROWS = 9, 49_097
_HELD_OUT_SHARE = 0.2
_SPLIT_SEED = 20240229
# Median, and the width of the middle 80 % of normal rows (at least 4), rounded: constants, because no device
# knows the others' rows. What is far out is bent in: see ``load``.
CENTRE = (43, 0, 82, 0, 42, 0, 40, 41, 2)
SPREAD = (16, 4, 22, 4, 36, 33, 26, 40, 18)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuttle:
    """Rows ``x`` float32[n, 9] from -1 to 1, and ``anomaly`` bool[n]."""

    x: NDArray[np.float32]
    anomaly: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Shuttle":
        """The rows with these numbers, copied."""
        return Shuttle(x=self.x[rows], anomaly=self.anomaly[rows])


def load() -> Shuttle:
    """All 49,097 rows (3,511 anomalies) in the source's order, as ``tanh((raw - CENTRE) / SPREAD)``.

    Raises:
        ConfigError: the data were not fetched yet.
    """
    arrays = DATASET.arrays()
    scaled = (arrays["reading"] - np.array(CENTRE, np.float32)) / np.array(SPREAD, np.float32)
    return Shuttle(x=np.tanh(scaled).astype(np.float32), anomaly=arrays["anomaly"].astype(bool))


def split() -> tuple[Shuttle, Shuttle]:
    """Four fifths of the normal rows to train on; the others and every anomaly to evaluate. Always the same.

    Raises:
        ConfigError: the data were not fetched yet.
    """
    shuttle = load()
    # Sorting raw output gives the same order in every version of NumPy; its shuffle does not promise to.
    order = np.argsort(np.random.PCG64(_SPLIT_SEED).random_raw(len(shuttle)), kind="stable")
    normal = order[~shuttle.anomaly[order]]
    cut = round(_HELD_OUT_SHARE * len(normal))
    held_out = np.concatenate([normal[:cut], np.flatnonzero(shuttle.anomaly)])
    return shuttle.take(normal[cut:]), shuttle.take(np.sort(held_out))


def auc(score: NDArray[Any], anomaly: NDArray[np.bool_]) -> float:
    """Of pairs of a normal row and an anomaly, the share where the anomaly scores higher; a draw is half."""
    normal = np.sort(score[~anomaly])
    below = np.searchsorted(normal, score[anomaly]) + np.searchsorted(normal, score[anomaly], side="right")
    return float(below.mean() / (2 * len(normal)))


def _convert(content: bytes) -> Arrays:
    """``reading`` int32[49097, 9] as the sensors gave them, and ``anomaly`` uint8[49097]."""
    try:
        # Its numbers take at most six characters each; an archive may unpack to any number of bytes.
        text = gzip.GzipFile(fileobj=io.BytesIO(content)).read(ROWS * (FEATURES + 1) * 8)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"shuttle.csv.gz: {error}") from None
    table = np.loadtxt(io.BytesIO(text), np.int32, delimiter=",", skiprows=1, max_rows=ROWS)
    return {"reading": table[:, :FEATURES], "anomaly": table[:, FEATURES].astype(np.uint8)}


DATASET = DataSet(
    name="shuttle",
    summary="nine sensors of the space shuttle, normal rows and anomalies",
    licence="CC BY 4.0 (UCI Statlog Shuttle); BSD-3-Clause (the package river)",
    source=PackageFile(
        package="river",
        version="0.26.1",
        member="river/datasets/shuttle.csv.gz",
        size=346_275,
        sha256="1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59",
    ),
    convert=_convert,
    sha256="62465d8f015d8ee56c0b9097b8d84101d49ccbf0252d3b98b0919f534adca084",
)
