"""Evaluation: how good a version is, and who says so.

The coordinator measures the *published* weights, those that devices have, on a held-out file; devices
report the same of the version they start from, on samples they never train on. Every figure names its
source, how many devices and how many examples.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.progress import Progress, unwatched
from broker_coordinator.storage.records import DeviceEvaluation
from fl_protocol.errors import ConfigError
from models.runtime import PREFERENCE, Batch, TrainingArtifact, open_session, split_flat

__all__ = ["Evaluation", "HeldOut", "caveat_of"]

_BATCH_ROWS = 512
_CLASSES = "softmax_cross_entropy"
_METRICS = {"correct": "accuracy", "absolute_error": "mae"}
"""Metrics whose sum has another name."""
_PERSONAL = {"weight": "personal parameters", "buffer": "running statistics"}
_NO_SUMS = {"accuracy", "count", "weight"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """``sums`` over ``examples``, measured by the ``coordinator`` or by ``devices``: how many of them."""

    source: str
    devices: int
    examples: int
    sums: Mapping[str, float]

    @property
    def accuracy(self) -> float | None:
        """Share of correct answers; None where that was not measured."""
        return self._mean("correct")

    @property
    def loss(self) -> float | None:
        """Mean loss; None where that was not measured."""
        return self._mean("loss")

    @property
    def means(self) -> dict[str, float]:
        """Every sum over the examples, by the name of its metric: ``accuracy``, ``loss``, ``mae``, ..."""
        sums = {_METRICS.get(name, name): value for name, value in self.sums.items() if name not in _NO_SUMS}
        return {name: value / self.examples for name, value in sums.items()} if self.examples else {}

    @classmethod
    def of_devices(cls, reports: DeviceEvaluation) -> "Evaluation | None":
        """What devices reported of a version; None if none did."""
        examples = int(reports.sums.get("count", reports.sums.get("weight", 0.0)))
        if not examples:
            return None
        return cls(source="devices", devices=reports.devices, examples=examples, sums=reports.sums)

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> "Evaluation | None":
        """The coordinator's own, as a version's record keeps it; None if there was none."""
        sums = dict(metrics)
        examples = int(sums.pop("count", 0))
        return cls(source="coordinator", devices=0, examples=examples, sums=sums) if examples else None

    def to_metrics(self) -> dict[str, float]:
        """What ``Store.set_evaluation`` takes: the sums, and ``count``."""
        return {**self.sums, "count": float(self.examples)}

    def _mean(self, name: str) -> float | None:
        return self.sums[name] / self.examples if name in self.sums and self.examples else None


def caveat_of(artifact: TrainingArtifact) -> str:
    """What is to be said with every figure that the coordinator measures; empty where there is nothing."""
    kinds = {parameter.kind for parameter in artifact.manifest.parameters if parameter.role == "personal"}
    what = " and ".join(text for kind, text in _PERSONAL.items() if kind in kinds)
    return f"with the {what} that the artifact came with: each device has its own" if what else ""


class HeldOut:
    """A held-out file, opened once together with the artifact that is measured on it.

    The file is an npz with ``x`` [rows, ...] and ``y`` [rows, ...], as the artifact's graphs take them;
    ``progress`` hears of each batch that is measured.

    Raises:
        ConfigError: the file cannot be read, or does not fit the artifact.
        RuntimeUnavailable: no runtime can run the artifact here.
    """

    def __init__(
        self,
        artifact: TrainingArtifact,
        path: Path,
        *,
        runtimes: Sequence[str] = PREFERENCE,
        progress: Progress = unwatched,
    ) -> None:
        self._progress = progress
        self._layout = artifact.layout
        self._x, self._y = _read(artifact, path)
        self.session, _ = open_session(artifact, runtimes)
        """What runs the artifact's graphs here."""
        if artifact.manifest.loss == _CLASSES:
            self._check_classes(artifact, path)

    @property
    def examples(self) -> int:
        """Rows in the file."""
        return len(self._x)

    def evaluate(self, weights: NDArray[np.float32]) -> Evaluation:
        """Measure published weights, float32[n]."""
        named = split_flat(weights, self._layout)
        sums: dict[str, float] = {}
        for start in range(0, len(self._x), _BATCH_ROWS):
            rows = slice(start, start + _BATCH_ROWS)
            for name, value in self.session.evaluate(named, Batch.of(self._x[rows], self._y[rows])).items():
                sums[name] = sums.get(name, 0.0) + value
            self._progress()
        return Evaluation(source="coordinator", devices=0, examples=len(self._x), sums=sums)

    def _check_classes(self, artifact: TrainingArtifact, path: Path) -> None:
        """To a graph, a class that is none has no logit: its rows would seem to have no loss at all."""
        output = self.session.infer(split_flat(artifact.initial_weights(), self._layout), self._x[:1])
        least, most = int(np.min(self._y)), int(np.max(self._y))
        if least < 0 or most >= output.shape[-1]:
            raise ConfigError(
                f"held-out file {path}: y holds classes from {least} to {most},"
                f" the model tells {output.shape[-1]} apart",
                hint=f"number the classes from 0 to {output.shape[-1] - 1}, as the devices' samples are",
            )


def _cast(array: NDArray[np.generic], dtype: str, where: str) -> NDArray[np.generic]:
    """The array in the dtype of a graph's input.

    Raises:
        ConfigError: whole numbers are wanted, and it holds others, or larger ones.
    """
    try:
        with np.errstate(invalid="ignore"):
            cast: NDArray[np.generic] = array.astype(dtype)
    except (ValueError, TypeError):
        raise ConfigError(f"{where} is {array.dtype}, the artifact takes {dtype}") from None
    if cast.dtype.kind == "i" and not np.array_equal(cast, array):
        raise ConfigError(
            f"{where} holds values that {dtype} does not", hint="classes and tokens are whole numbers from 0"
        )
    return cast


def _read(artifact: TrainingArtifact, path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"held-out file {path}: {error}", hint="write it with numpy.savez(path, x=..., y=...)"
        ) from None
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y) or not len(x):
        raise ConfigError(f"held-out file {path}: {len(x)} rows of x and {len(y)} of y")
    for wanted in artifact.manifest.inputs:
        array = {"x": x, "y": y}.get(wanted.name)
        if array is None:
            continue
        if array.shape[1:] != wanted.shape[1:]:
            raise ConfigError(
                f"held-out file {path}: {wanted.name} has rows of shape {array.shape[1:]},"
                f" the artifact takes {wanted.shape[1:]}"
            )
        cast = _cast(array, wanted.dtype, f"held-out file {path}: {wanted.name}")
        if wanted.name == "x":
            x = cast
        else:
            y = cast
    return x, y
