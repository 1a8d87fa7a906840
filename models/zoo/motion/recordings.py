"""Seven exercises of the shoulder, as a watch on the wrist of ten people felt them.

Burns, Leung, Hardisty, Whyne, Henry, McLachlin: Shoulder Physiotherapy Exercise Recognition: Machine Learning
the Inertial Signals from a Smartwatch (2018), arXiv 1802.01489. Not part of Lichen: see docs/data.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ConfigError
from models.zoo.dataset import Arrays, DataSet
from models.zoo.package_file import PackageFile
from models.zoo.plain_pickle import unpickled

__all__ = ["CLASSES", "DATASET", "PEOPLE", "RATE_HZ", "Motion", "load", "split", "split_in_time"]

CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
"""In the order of the labels: pendulum, abduction, forward elevation, internal and external rotation,
trapezius extension, upright row."""
PEOPLE = tuple(range(1, 11))
RATE_HZ = 50
CHANNELS = 6
WINDOW, STEP = 2 * RATE_HZ, RATE_HZ


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Windows ``x`` float32[n, 6, 100] (acceleration in g and rotation in rad/s, x y z each, 50 a second),
    the exercise ``y`` int32[n] from 0 to 6, and who did it, ``person`` int32[n] from 1 to 10."""

    x: NDArray[np.float32]
    y: NDArray[np.int32]
    person: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Motion":
        """The windows with these numbers, copied."""
        return Motion(x=self.x[rows], y=self.y[rows], person=self.person[rows])


def load(*, step: int = STEP) -> Motion:
    """Every window of two seconds, one begun each ``step`` samples: 4,677 with the step of one second.

    Windows overlap within a recording, never across two; they stand in the order of the recordings.

    Raises:
        ConfigError: the data were not fetched yet.
    """
    return _windows(step)[0]


def _windows(step: int) -> tuple[Motion, NDArray[np.intp]]:
    """The windows, and how many each recording has."""
    arrays = DATASET.arrays()
    ends = np.cumsum(arrays["length"])
    x = [
        np.lib.stride_tricks.sliding_window_view(arrays["signal"][end - length : end], WINDOW, axis=0)[::step]
        for end, length in zip(ends, arrays["length"], strict=True)
    ]
    counts = np.array([len(windows) for windows in x])
    motion = Motion(
        x=np.ascontiguousarray(np.concatenate(x)),
        y=np.repeat(arrays["exercise"], counts).astype(np.int32),
        person=np.repeat(arrays["person"], counts).astype(np.int32),
    )
    return motion, counts


def split(held_out: Sequence[int] = (9, 10)) -> tuple[Motion, Motion]:
    """Windows to train on, and those of the people ``held_out``: of somebody never seen.

    Raises:
        ConfigError: nobody, everybody or a stranger is held out, or the data were not fetched yet.
    """
    if not held_out or not set(held_out) < set(PEOPLE):
        raise ConfigError(
            f"held out: {', '.join(map(str, held_out)) or 'nobody'}",
            hint=f"some of the people {PEOPLE[0]} to {PEOPLE[-1]}, not all of them",
        )
    motion = load()
    theirs = np.isin(motion.person, list(held_out))
    return motion.take(~theirs), motion.take(theirs)


def split_in_time(share: float = 0.2) -> tuple[Motion, Motion]:
    """Of all ten people, windows to train on and the last ``share`` of each recording: somebody known, later.

    What overlaps both parts is in neither. Easier than ``split``; it tells how well each person is served.

    Raises:
        ConfigError: a share that leaves one part empty, or the data were not fetched yet.
    """
    if not 0 < share < 1:
        raise ConfigError(f"held out: a share of {share:g}", hint="a share between 0 and 1, such as 0.2")
    motion, counts = _windows(STEP)
    place = np.concatenate([np.arange(count) for count in counts])
    first = np.repeat(counts - np.maximum(np.round(share * counts).astype(int), 1), counts)
    return motion.take(place + WINDOW // STEP <= first), motion.take(place >= first)


def _convert(content: bytes) -> Arrays:
    """Recordings one after the other: ``signal`` float32[sum of lengths, 6] and, for each of the 140, its
    ``length``, ``exercise``, ``person`` and ``side`` (1 right, 0 left)."""
    watch = unpickled(content)
    signals = [np.asarray(signal, np.float32) for signal in watch["X"]]
    return {
        "signal": np.concatenate(signals),
        "length": np.array([len(signal) for signal in signals], np.int32),
        "exercise": np.asarray(watch["y"], np.uint8),
        "person": np.asarray(watch["subject"], np.uint8),
        "side": np.asarray(watch["side"], np.uint8),
    }


DATASET = DataSet(
    name="motion",
    summary="seven exercises of ten people, from a watch on the wrist",
    licence="BSD-3-Clause (D. M. Burns, the package seglearn)",
    source=PackageFile(
        package="seglearn",
        version="1.2.5",
        member="seglearn/data/watch_dataset.npy",
        size=18_118_091,
        sha256="eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537",
    ),
    convert=_convert,
    sha256="f56ebcfbae8855b91053939da724df95e3020ece0ea766bf0f8deba569c4ca88",
)
