"""A session: one artifact opened in one runtime, pure arrays in and out.

A runtime only has to run a graph (``GraphRunner``); what goes into the graphs and what comes out is the
same for all of them and stands here once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError, LayoutError
from models.runtime.artifact import TrainingArtifact

__all__ = ["Array", "Batch", "GraphRunner", "GraphSession", "Runtime", "Session", "StepResult", "zero_slots"]

Array: TypeAlias = NDArray[Any]

GraphRunner: TypeAlias = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Runs one graph: every input by name in, every output by name out."""

STEP_FILE = "step.onnx"
EVAL_FILE = "eval.onnx"
INFER_FILE = "infer.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows to train on or to evaluate.

    ``x`` float32[batch, ...], ``y`` int32[batch], ``sample_weight`` float32[batch]; a row of weight 0
    counts nothing. Where all weights are 0 the caller skips the step: momentum alone would still move.
    """

    x: Array
    y: Array
    sample_weight: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> "Batch":
        """A batch whose rows all weigh 1."""
        return cls(x=x, y=y, sample_weight=np.ones(len(x), np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one training step gives back.

    ``weights`` and ``slots`` are the next ones, named as they went in; ``sums`` are over the rows, each
    times its sample weight, under the *old* weights: ``loss``, ``weight``, and one per metric
    (``correct``); ``grad_norm`` is the global norm of the loss's gradient before clipping.
    """

    weights: dict[str, Array]
    slots: dict[str, Array]
    sums: dict[str, float]
    grad_norm: float


class Session(Protocol):
    """An artifact opened in a runtime.

    Raises:
        LayoutError: a tensor is missing.
        ArtifactError: the runtime fails on these arrays.
    """

    @property
    def name(self) -> str:
        """The runtime's name."""

    def step(
        self,
        weights: Mapping[str, Array],
        slots: Mapping[str, Array],
        batch: Batch,
        hyper: Mapping[str, float],
        anchor: Mapping[str, Array],
    ) -> StepResult:
        """Take one training step.

        ``weights`` and ``anchor`` (the weights that FedProx pulls to: the base version) map a tensor's
        name to float32; ``slots`` maps ``slot.tensor`` (``zero_slots`` at the start of a participation).
        ``hyper`` overrides the artifact's defaults; names its graph has no input for are left out.
        """

    def evaluate(self, weights: Mapping[str, Array], batch: Batch) -> dict[str, float]:
        """The sums of ``StepResult.sums`` without a step."""

    def infer(self, weights: Mapping[str, Array], x: Array) -> Array:
        """The model's output for ``x``: float32[batch, ...]."""


class Runtime(Protocol):
    """Something that runs an artifact's graphs."""

    @property
    def name(self) -> str:
        """The name used in configurations."""

    def open(self, artifact: TrainingArtifact) -> Session:
        """Open an artifact.

        Raises:
            RuntimeUnavailable: the runtime is not installed here.
            ArtifactError: the runtime cannot read the artifact's graphs.
        """


class GraphSession:
    """A session on top of anything that runs one graph; each graph is loaded when it is first used."""

    def __init__(
        self, name: str, artifact: TrainingArtifact, load: Callable[[str, bytes], GraphRunner]
    ) -> None:
        manifest = artifact.manifest
        self._name = name
        self._artifact = artifact
        self._load = load
        self._runners: dict[str, GraphRunner] = {}
        self._parameters = tuple(tensor.name for tensor in manifest.layout.tensors)
        self._slots = tuple(f"{slot}.{name}" for slot in manifest.slots for name in self._parameters)
        self._hyper = dict(manifest.hyper)
        self._runner(STEP_FILE)

    @property
    def name(self) -> str:
        """The runtime's name."""
        return self._name

    def step(
        self,
        weights: Mapping[str, Array],
        slots: Mapping[str, Array],
        batch: Batch,
        hyper: Mapping[str, float],
        anchor: Mapping[str, Array],
    ) -> StepResult:
        """See ``Session.step``."""
        try:
            feeds = {f"w.{name}": weights[name] for name in self._parameters}
            feeds.update((f"a.{name}", anchor[name]) for name in self._parameters)
            feeds.update((slot, slots[slot]) for slot in self._slots)
        except KeyError as missing:
            raise LayoutError(f"a training step needs the tensor {missing}, which was not given") from None
        for key, default in self._hyper.items():
            feeds[key] = np.array(hyper.get(key, default), np.float32)
        outputs = self._runner(STEP_FILE)(feeds | _rows(batch))
        try:
            return StepResult(
                weights={name: outputs.pop(f"w.{name}.new") for name in self._parameters},
                slots={slot: outputs.pop(f"{slot}.new") for slot in self._slots},
                grad_norm=float(outputs.pop("grad_norm")),
                sums=_sums(STEP_FILE, outputs),
            )
        except KeyError as missing:
            raise ArtifactError(f"{STEP_FILE} does not compute {missing}") from None

    def evaluate(self, weights: Mapping[str, Array], batch: Batch) -> dict[str, float]:
        """See ``Session.evaluate``."""
        outputs = self._runner(EVAL_FILE)(self._weights(weights) | _rows(batch))
        return _sums(EVAL_FILE, outputs)

    def infer(self, weights: Mapping[str, Array], x: Array) -> Array:
        """See ``Session.infer``."""
        outputs = self._runner(INFER_FILE)(self._weights(weights) | {"x": x})
        if "output" not in outputs:
            raise ArtifactError(f"{INFER_FILE} does not compute 'output'")
        return outputs["output"]

    def _weights(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return {f"w.{name}": weights[name] for name in self._parameters}
        except KeyError as missing:
            raise LayoutError(f"the model needs the tensor {missing}, which was not given") from None

    def _runner(self, file: str) -> GraphRunner:
        runner = self._runners.get(file)
        if runner is None:
            runner = self._runners[file] = self._load(file, self._artifact.read(file))
        return runner


def zero_slots(artifact: TrainingArtifact) -> dict[str, Array]:
    """The optimizer's state at the start of a participation: float32 zeros, named ``slot.tensor``."""
    manifest = artifact.manifest
    return {
        f"{slot}.{tensor.name}": np.zeros(tensor.shape, np.float32)
        for slot in manifest.slots
        for tensor in manifest.layout.tensors
    }


def _rows(batch: Batch) -> dict[str, Array]:
    return {"x": batch.x, "y": batch.y, "sample_weight": batch.sample_weight}


def _sums(file: str, outputs: Mapping[str, Array]) -> dict[str, float]:
    for key, value in outputs.items():
        if value.size != 1:
            raise ArtifactError(f"{file}: the sum {key!r} has {value.size} values")
    return {key: float(value.reshape(())) for key, value in outputs.items()}
