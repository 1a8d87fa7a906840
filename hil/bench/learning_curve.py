"""A learning curve: what a simulated fleet has folded, sent and learned, every so many updates."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec import decode_model
from hil.simulate.fleet import VirtualFleet
from hil.simulate.scenario import Written, run_scenario
from hil.workload import Samples
from models.runtime import TrainingArtifact, open_session, split_flat

__all__ = ["CurvePoint", "LearningCurve", "Yardstick", "learning_curve"]

EVERY = 20
"""Updates from a point to the next."""
SMOOTH = 3
"""Points of a running mean: a single version's accuracy on some hundred samples is a draw."""
_EVALUATE_EVERY = 5
"""Updates from an evaluation to the next, where versions are made of fewer."""
_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Until here: virtual seconds, updates folded, payload bytes of all updates that were encoded, all MQTT
    bytes up; and the mean accuracy of the versions since the last point, over all samples and over those of
    the worst group."""

    virtual_s: float
    updates: int
    payload: int
    bytes_up: int
    accuracy: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningCurve:
    """The points of one run, in order, and how many groups of samples the worst was looked for among."""

    points: tuple[CurvePoint, ...]
    groups: int

    @property
    def smooth(self) -> tuple[float, ...]:
        """Accuracy at each point, as the mean of it and the two before."""
        return self._means("accuracy")

    @property
    def level(self) -> float:
        """Where it ends: the mean accuracy of the last quarter of its points."""
        return self._end("accuracy")

    @property
    def worst_level(self) -> float:
        """The same of the worst group."""
        return self._end("worst")

    def reached(self, accuracy: float) -> CurvePoint | None:
        """The first point whose smoothed accuracy is there; None where there is none."""
        for point, mean in zip(self.points, self.smooth, strict=True):
            if mean >= accuracy:
                return point
        return None

    def within(self, virtual_s: float) -> "LearningCurve":
        """The part of it until then, at least its first point."""
        count = sum(point.virtual_s <= virtual_s for point in self.points)
        return LearningCurve(points=self.points[: max(count, 1)], groups=self.groups)

    def to_body(self) -> dict[str, Any]:
        """As JSON takes it: a row for each point."""
        return {"groups": self.groups, "points": [list(asdict(point).values()) for point in self.points]}

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> "LearningCurve":
        """From what ``to_body`` made."""
        names = CurvePoint.__dataclass_fields__
        points = tuple(CurvePoint(**dict(zip(names, row, strict=True))) for row in body["points"])
        return cls(points=points, groups=body["groups"])

    def _means(self, name: str) -> tuple[float, ...]:
        values = [getattr(point, name) for point in self.points]
        parts = (values[max(0, end - SMOOTH) : end] for end in range(1, len(values) + 1))
        return tuple(sum(part) / len(part) for part in parts)

    def _end(self, name: str) -> float:
        values: list[float] = [getattr(point, name) for point in self.points]
        last = values[-max(1, len(values) // 4) :]
        return sum(last) / len(last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """What versions of the artifact are measured with, and the group of each sample, an integer: its class,
    or the person that it is of."""

    artifact: TrainingArtifact
    samples: Samples
    groups: NDArray[np.integer[Any]]


def learning_curve(written: Written, measure: Yardstick) -> LearningCurve:
    """Run a scenario that measures nothing itself, and measure what it publishes.

    Raises:
        ConfigError: the scenario's parts do not fit together.
    """
    with tempfile.TemporaryDirectory(prefix="lichen-", ignore_cleanup_errors=True) as folder:
        recorder = _Recorder(Path(folder) / "state", measure)
        run_scenario(written, state=recorder.state, progress=recorder)
        return LearningCurve(points=tuple(recorder.points), groups=len(np.unique(measure.groups)))


class _Recorder:
    """Looks at a fleet after each moment of its time."""

    def __init__(self, state: Path, measure: Yardstick) -> None:
        self.state = state
        self.points: list[CurvePoint] = []
        self._measure = measure
        self._labels = np.unique(measure.groups)
        self._session, _ = open_session(measure.artifact)
        self._seen = 0
        self._evaluated = -_EVALUATE_EVERY
        self._since: list[NDArray[np.float64]] = []

    def __call__(self, fleet: VirtualFleet) -> None:
        if len(fleet.history) == self._seen:
            return
        self._seen = len(fleet.history)
        moment = fleet.history[-1]
        if moment.updates - self._evaluated >= _EVALUATE_EVERY:
            self._evaluated = moment.updates
            self._since.append(self._shares(fleet, moment.version))
        last = self.points[-1].updates if self.points else 0
        if self._since and moment.updates - last >= EVERY:
            means = np.mean(self._since, axis=0)
            self._since = []
            self.points.append(
                CurvePoint(
                    virtual_s=round(moment.virtual_s, 2),
                    updates=moment.updates,
                    payload=fleet.payload_bytes,
                    bytes_up=moment.bytes_up,
                    accuracy=round(float(means[0]), 5),
                    worst=round(float(means[1:].min()), 5),
                )
            )

    def _shares(self, fleet: VirtualFleet, version: int) -> NDArray[np.float64]:
        """Of the published weights: the accuracy over all samples, then that of each group."""
        record = fleet.store.version(version) or fleet.coordinator.version
        layout = self._measure.artifact.layout
        content = (self.state / "blobs" / record.published_sha256.hex()).read_bytes()
        named = split_flat(decode_model(content, layout), layout)
        x, y = self._measure.samples.x, self._measure.samples.y
        right = np.concatenate(
            [
                self._session.infer(named, x[start : start + _ROWS]).argmax(axis=1)
                == y[start : start + _ROWS]
                for start in range(0, len(x), _ROWS)
            ]
        )
        return np.array(
            [right.mean(), *(right[self._measure.groups == label].mean() for label in self._labels)]
        )
