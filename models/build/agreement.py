"""The last gate of a front door: the artifact computes what the framework computes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.runtime.artifact import TrainingArtifact
from models.runtime.flat import split_flat
from models.runtime.numpy_runtime import NumpyRuntime

__all__ = ["check_same_output"]

_TOLERANCE = 1e-4


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
