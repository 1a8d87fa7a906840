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

__all__ = [
    "CORRECTION",
    "STEP",
    "STEP_COUNTER",
    "Array",
    "Batch",
    "GraphRunner",
    "GraphSession",
    "Runtime",
    "Session",
    "StepResult",
    "padded",
    "zero_slots",
]

Array: TypeAlias = NDArray[Any]

GraphRunner: TypeAlias = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Runs one graph: every input by name in, every output by name out."""

STEP, EVAL, INFER = "step", "eval", "infer"
"""The graphs of an artifact; their files end as the runtime's ``suffix`` says."""
STEP_COUNTER = "t"
"""The one slot that is not a tensor per parameter but a scalar: how many steps were taken."""
CORRECTION = "correction"
"""The scalar that a step graph with corrections has: what they are multiplied by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows to train on or to evaluate.

    ``x`` float32 or int32 [batch, ...], ``y`` int32[batch] classes or float32[batch, ...] numbers,
    ``sample_weight`` float32[batch]; a row of weight 0 counts nothing. Where all weights are 0 the caller
    skips the step: momentum alone would still move. No runtime checks that the model has a row's class;
    where it has not, the row has no loss.

    Raises:
        LayoutError: not as many labels or weights as rows.
    """

    x: Array
    y: Array
    sample_weight: Array

    def __post_init__(self) -> None:
        """Not left to the graphs: one of fixed size has its rows filled up, labels and weights alike."""
        if not len(self.x) == len(self.y) == len(self.sample_weight):
            counts = f"{len(self.y)} labels and {len(self.sample_weight)} weights"
            raise LayoutError(f"a batch of {len(self.x)} rows has {counts}")

    @classmethod
    def of(cls, x: Array, y: Array) -> "Batch":
        """A batch whose rows all weigh 1."""
        return cls(x=x, y=y, sample_weight=np.ones(len(x), np.float32))

    def padded(self, rows: int) -> "Batch":
        """The same rows and, up to ``rows``, rows of weight 0."""
        missing = rows - len(self.x)
        if missing <= 0:
            return self
        weight = np.pad(self.sample_weight, (0, missing))
        return Batch(x=padded(self.x, rows), y=padded(self.y, rows), sample_weight=weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one training step gives back.

    ``weights`` holds every tensor that the step changes: weights and running statistics, those that travel
    and those that are personal; it and ``slots`` are named as they went in. ``sums`` are over the rows, each
    times its sample weight, under the *old* weights and in training mode: ``loss``, ``weight``, and one per
    metric (``correct``); ``grad_norm`` is the global norm of the loss's gradient before clipping.
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
        *,
        correction: Mapping[str, Array] | None = None,
    ) -> StepResult:
        """Take one training step.

        ``weights`` maps the name of every tensor of the layout to float32; personal tensors may be among
        them, those that are not are the artifact's own. ``anchor`` (the weights that FedProx pulls to: the
        base version) and ``correction`` (added to the gradients, SCAFFOLD's ``c - c_i``; zero where it is
        not given) are of the layout's weights; an artifact built without correction takes none.
        ``slots`` maps ``slot.tensor`` (``zero_slots`` at the start of a participation). ``hyper`` overrides
        the artifact's defaults; names its graph has no input for are left out. Where units are dropped,
        ``seed`` among them, an integer from 0 to 2^22 - 1, says which: give each step another one.
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

    @property
    def suffix(self) -> str:
        """How the files end that it runs: ``.onnx`` or ``.tflite``."""

    def open(self, artifact: TrainingArtifact) -> Session:
        """Open an artifact.

        Raises:
            RuntimeUnavailable: the runtime is not installed here.
            ArtifactError: the runtime cannot read the artifact's graphs.
        """


class GraphSession:
    """A session on top of anything that runs one graph; each graph is loaded when it is first used.

    ``load`` is given a file's name, which ends in ``suffix``, and its content. ``one_at_a_time`` is for a
    runtime that loads quickly and whose graphs each hold memory of their own: the last one is let go.
    """

    def __init__(
        self,
        name: str,
        artifact: TrainingArtifact,
        load: Callable[[str, bytes], GraphRunner],
        *,
        suffix: str = ".onnx",
        one_at_a_time: bool = False,
    ) -> None:
        manifest = artifact.manifest
        self._name = name
        self._artifact = artifact
        self._load = load
        self._suffix = suffix
        self._one_at_a_time = one_at_a_time
        self._runners: dict[str, GraphRunner] = {}
        self._travels = tuple(tensor.name for tensor in manifest.layout.tensors)
        self._anchored = tuple(tensor.name for tensor in manifest.layout.weights.tensors)
        self._personal = tuple(entry.name for entry in manifest.parameters if entry.role == "personal")
        self._slots = tuple(_slot_shapes(artifact))
        self._resting = {f"w.{name}": array for name, array in artifact.frozen_weights().items()}
        self._hyper = dict(manifest.hyper)
        self._no_correction = (
            {
                f"c.{entry.name}": np.zeros(entry.shape, np.float32)
                for entry in manifest.layout.weights.tensors
            }
            if CORRECTION in manifest.hyper
            else {}
        )
        self._runner(STEP)

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
        *,
        correction: Mapping[str, Array] | None = None,
    ) -> StepResult:
        """See ``Session.step``."""
        feeds = self._weights(weights) | self._no_correction
        try:
            feeds.update((f"a.{name}", anchor[name]) for name in self._anchored)
            feeds.update((slot, slots[slot]) for slot in self._slots)
            if correction is not None:
                feeds.update(self._corrections(correction))
        except KeyError as missing:
            raise LayoutError(f"a training step needs the tensor {missing}, which was not given") from None
        for key, default in self._hyper.items():
            feeds[key] = np.array(hyper.get(key, default), np.float32)
        outputs = self._runner(STEP)(feeds | _rows(batch))
        try:
            return StepResult(
                weights={name: outputs.pop(f"w.{name}.new") for name in (*self._travels, *self._personal)},
                slots={slot: outputs.pop(f"{slot}.new") for slot in self._slots},
                grad_norm=float(outputs.pop("grad_norm")),
                sums=_sums(STEP, outputs),
            )
        except KeyError as missing:
            raise ArtifactError(f"{STEP}{self._suffix} does not compute {missing}") from None

    def evaluate(self, weights: Mapping[str, Array], batch: Batch) -> dict[str, float]:
        """See ``Session.evaluate``."""
        # Not every release of a runtime takes a batch without rows.
        outputs = self._runner(EVAL)(self._weights(weights) | _rows(batch.padded(1)))
        return _sums(EVAL, outputs)

    def infer(self, weights: Mapping[str, Array], x: Array) -> Array:
        """See ``Session.infer``."""
        outputs = self._runner(INFER)(self._weights(weights) | {"x": x if len(x) else padded(x, 1)})
        if "output" not in outputs:
            raise ArtifactError(f"{INFER}{self._suffix} does not compute 'output'")
        return outputs["output"] if len(x) else outputs["output"][:0]

    def _weights(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        try:
            feeds = self._resting | {f"w.{name}": weights[name] for name in self._travels}
        except KeyError as missing:
            raise LayoutError(f"the model needs the tensor {missing}, which was not given") from None
        feeds.update((f"w.{name}", weights[name]) for name in self._personal if name in weights)
        return feeds

    def _corrections(self, correction: Mapping[str, Array]) -> dict[str, Array]:
        if not self._no_correction:
            raise LayoutError(
                "the artifact takes no correction", hint="build it with --correction, or train without one"
            )
        return {f"c.{name}": correction[name] for name in self._anchored}

    def _runner(self, graph: str) -> GraphRunner:
        runner = self._runners.get(graph)
        if runner is None:
            file = graph + self._suffix
            if self._one_at_a_time:
                self._runners.clear()
            runner = self._runners[graph] = self._load(file, self._artifact.read(file))
        return runner


def zero_slots(artifact: TrainingArtifact) -> dict[str, Array]:
    """The optimizer's state at the start of a participation: float32 zeros, named ``slot.tensor``.

    An optimizer that counts its steps has the scalar ``t`` besides.
    """
    return {name: np.zeros(shape, np.float32) for name, shape in _slot_shapes(artifact).items()}


def _slot_shapes(artifact: TrainingArtifact) -> dict[str, tuple[int, ...]]:
    manifest = artifact.manifest
    shapes: dict[str, tuple[int, ...]] = {
        f"{slot}.{entry.name}": entry.shape
        for slot in manifest.slots
        if slot != STEP_COUNTER
        for entry in manifest.parameters
        if entry.kind == "weight" and entry.role != "frozen"
    }
    return shapes | ({STEP_COUNTER: ()} if STEP_COUNTER in manifest.slots else {})


def padded(array: Array, rows: int) -> Array:
    """``array`` [batch, ...] with rows up to ``rows``: its first again, zeros where it has none."""
    missing = rows - len(array)
    if missing <= 0:
        return array
    # A row again and not zeros, which a model may not take: 0 / 0 is no number, however little it weighs.
    filling = array[:1] if len(array) else np.zeros((1, *array.shape[1:]), array.dtype)
    return np.concatenate([array, np.repeat(filling, missing, axis=0)])


def _rows(batch: Batch) -> dict[str, Array]:
    return {"x": batch.x, "y": batch.y, "sample_weight": batch.sample_weight}


def _sums(graph: str, outputs: Mapping[str, Array]) -> dict[str, float]:
    for key, value in outputs.items():
        if value.size != 1:
            raise ArtifactError(f"the {graph} graph: the sum {key!r} has {value.size} values")
    return {key: float(value.reshape(())) for key, value in outputs.items()}
