"""Training steps of many devices at once: one artifact, and each device's own weights, slots and rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl_protocol.errors import ArtifactError, LayoutError
from models.runtime.artifact import TrainingArtifact
from models.runtime.numpy_stack import StackedGraph
from models.runtime.onnx_reader import read_model
from models.runtime.session import STEP, Array, Batch, GraphRunner, GraphSession

__all__ = ["StackedSession", "StackedStep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedStep:
    """What one step gives each of the devices: tensors [devices, ...], ``grad_norm`` float32[devices]."""

    weights: dict[str, Array]
    slots: dict[str, Array]
    grad_norm: Array


class StackedSession(GraphSession):
    """An artifact opened for many devices, in NumPy. A device's results are those that it has alone, but for
    the rounding of float32.

    Raises:
        ArtifactError: the graphs cannot be read.
    """

    def __init__(self, artifact: TrainingArtifact) -> None:
        super().__init__("numpy", artifact, _load)

    def step_all(
        self,
        weights: Mapping[str, Array],
        slots: Mapping[str, Array],
        batch: Batch,
        hyper: Mapping[str, float | Array],
        anchor: Mapping[str, Array],
    ) -> StackedStep:
        """Take one training step on each device: ``Session.step`` with ``weights`` and ``slots`` of shape
        [devices, ...], a ``batch`` of arrays [devices, rows, ...], and ``anchor`` the same for all.
        ``hyper`` holds numbers for all, or float32[devices].

        Raises:
            LayoutError: a tensor is missing.
            ArtifactError: NumPy fails on these arrays.
        """
        feeds = self._weights(weights) | self._no_correction
        try:
            feeds.update((f"a.{name}", anchor[name]) for name in self._anchored)
            feeds.update((slot, slots[slot]) for slot in self._slots)
        except KeyError as missing:
            raise LayoutError(f"a training step needs the tensor {missing}, which was not given") from None
        for key, default in self._hyper.items():
            feeds[key] = np.asarray(hyper.get(key, default), np.float32)
        feeds |= {"x": batch.x, "y": batch.y, "sample_weight": batch.sample_weight}
        outputs = self._runner(STEP)(feeds)
        try:
            return StackedStep(
                weights={name: outputs[f"w.{name}.new"] for name in (*self._travels, *self._personal)},
                slots={slot: outputs[f"{slot}.new"] for slot in self._slots},
                grad_norm=outputs["grad_norm"],
            )
        except KeyError as missing:
            raise ArtifactError(f"{STEP}{self._suffix} does not compute {missing}") from None


def _load(file: str, content: bytes) -> GraphRunner:
    try:
        return StackedGraph(read_model(content))
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from None
