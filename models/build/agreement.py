"""The last gates of a front door: the artifact computes what the framework computes, and learns as it does.

A graph holds no word of where a framework holds gradients back.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.build.drawn_rows import draw_rows, initial_tensors
from models.runtime.artifact import TrainingArtifact
from models.runtime.flat import split_flat
from models.runtime.numpy_runtime import NumpyRuntime

__all__ = ["Gradients", "check_same_gradients", "check_same_output", "rows_between"]

_TOLERANCE = 1e-4
_GRADIENT_TOLERANCE = 1e-3
_DIFFERENCES = (1e-6, 1e-7, 1e-8)
"""Tried in turn: the slope bends where a ReLU's kink lies within one."""

Gradients: TypeAlias = Callable[[Mapping[str, NDArray[Any]], NDArray[Any]], Mapping[str, NDArray[Any]]]
"""``gradients(weights, factors)``: those of ``sum(output * factors)`` by each of ``weights`` (float32),
in evaluation, as the framework's own differentiation has them."""


def check_same_output(artifact: TrainingArtifact, x: NDArray[Any], theirs: NDArray[Any], whose: str) -> None:
    """The artifact computes what its framework computes, on these rows.

    Raises:
        ArtifactError: it does not; the message says by how much.
    """
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    entry = artifact.manifest.inputs[0]
    ours = NumpyRuntime().open(artifact).infer(weights, x.astype(entry.dtype))
    theirs = theirs.reshape(ours.shape) if theirs.size == ours.size else theirs
    if ours.shape != theirs.shape:
        raise ArtifactError(f"the artifact computes {list(ours.shape)}, but {whose} {list(theirs.shape)}")
    worst = float(np.abs(ours - theirs).max(initial=0))
    if not worst <= _TOLERANCE * max(1.0, float(np.abs(theirs).max(initial=0))):
        raise ArtifactError(
            f"the artifact's output is off by {worst:.3g} from that of {whose}",
            hint="forward must compute the same in training and in evaluation, but for dropout and batch "
            "normalisation: look for self.training in it",
        )


def check_same_gradients(
    artifact: TrainingArtifact, x: NDArray[Any], gradients: Gradients, whose: str
) -> None:
    """The gradient of every tensor that is trained is the slope of what the artifact computes of these rows.

    Along one random direction per tensor, at weights a little off the initial ones, whose zeros may put a
    layer on the kink of its ReLU. That a step of the artifact goes along that slope is another gate's work.

    Raises:
        ArtifactError: one is not; the message names it.
    """
    draw = np.random.default_rng(8)
    trained = [it.name for it in artifact.manifest.parameters if it.kind == "weight" and it.role != "frozen"]
    everything = initial_tensors(artifact)
    weights: dict[str, NDArray[Any]] = {
        name: np.asarray(everything[name] + 0.01 * draw.standard_normal(everything[name].shape), np.float32)
        for name in trained
    }
    start, session = everything | weights, NumpyRuntime(np.float64).open(artifact)
    x = x.astype(artifact.manifest.inputs[0].dtype)
    factors = draw.standard_normal(session.infer(start, x).shape, np.float32)
    found = gradients(weights, factors)
    whole = np.sqrt(sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in found.values()))

    def value(name: str, moved: NDArray[Any]) -> float:
        return float((session.infer({**start, name: moved}, x) * factors).sum())

    for name, tensor in weights.items():
        direction = draw.standard_normal(tensor.shape)
        along = float((found[name] * direction).sum())
        for difference in _DIFFERENCES:
            there, back = (value(name, tensor + sign * difference * direction) for sign in (1, -1))
            slope = (there - back) / (2 * difference)
            if abs(slope - along) <= _GRADIENT_TOLERANCE * max(abs(slope), abs(along), 1e-3 * whole):
                break
        else:
            raise ArtifactError(
                f"{name} would be trained otherwise than by {whose}: its gradient there is {along:.4g} along "
                f"a direction where the output's slope is {slope:.4g}",
                hint="a graph cannot hold gradients back or scale them (detach, no_grad, a backward of one's "
                "own, scale_grad_by_freq): freeze whole parameters instead (requires_grad, train=[...])",
            )


def rows_between(artifact: TrainingArtifact, count: int) -> NDArray[Any]:
    """Rows as the model takes them, [count, ...]: numbers of which no two are alike, or ids."""
    x = draw_rows(artifact, np.random.PCG64(5), count)
    if x.dtype != np.float32:
        return x
    between: NDArray[Any] = x + np.random.default_rng(5).random(x.shape, np.float32) / 8
    return between
