"""Personal tensors: those of a model that a device trains for itself, which never leave it.

They start as the artifact has them, and are kept as one record (the *device state*) beside the outbox.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_agent.device_state import MAX_DEVICE_STATE_BYTES
from edge_agent.tensor_record import pack_record, unpack_record
from fl_protocol.errors import ArtifactError, LayoutError, StorageError
from models.runtime import TrainingArtifact

__all__ = ["PersonalTensors", "initial_personal", "pack_personal", "personal_shapes", "personal_tensors"]

PersonalTensors = Mapping[str, NDArray[np.float32]]
_WHAT = "the device's personal state"


def personal_shapes(artifact: TrainingArtifact) -> dict[str, tuple[int, ...]]:
    """The names of an artifact's personal tensors (weights and buffers) and their shapes."""
    return {
        parameter.name: parameter.shape
        for parameter in artifact.manifest.parameters
        if parameter.role == "personal"
    }


def initial_personal(artifact: TrainingArtifact) -> dict[str, NDArray[np.float32]]:
    """The personal tensors as a device has them that never trained.

    Raises:
        ArtifactError: more than a device keeps, or a damaged file.
    """
    shapes = personal_shapes(artifact)
    if not shapes:
        return {}
    size = sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    if size > MAX_DEVICE_STATE_BYTES // 2:
        raise ArtifactError(
            f"{len(shapes)} personal tensors of {size} bytes, a device keeps {MAX_DEVICE_STATE_BYTES // 2}",
            hint="build the artifact with fewer personal parameters",
        )
    resting = artifact.frozen_weights()
    return {name: resting[name] for name in shapes}


def personal_tensors(artifact: TrainingArtifact, state: bytes) -> dict[str, NDArray[np.float32]]:
    """The personal tensors to use with ``artifact``: those in ``state``, the initial ones where it is empty.

    Raises:
        StorageError: ``state`` is damaged.
        LayoutError: it holds other names or shapes than the artifact has: it is another model's.
        ArtifactError: as ``initial_personal``.
    """
    shapes = personal_shapes(artifact)
    if not state or not shapes:
        return initial_personal(artifact)
    _, kept = unpack_record(state, _WHAT)
    if {name: tensor.shape for name, tensor in kept.items()} != shapes:
        raise LayoutError(f"{_WHAT} holds {sorted(kept)}, the model has {sorted(shapes)} or other shapes")
    if any(tensor.dtype != np.float32 or not np.isfinite(tensor).all() for tensor in kept.values()):
        raise StorageError(f"{_WHAT} holds something else than finite float32 numbers")
    return kept


def pack_personal(tensors: PersonalTensors) -> bytes:
    """The device state that holds these tensors; empty where there are none."""
    return pack_record({}, tensors) if tensors else b""
