"""An artifact of layout and weights alone, for a trainer that brings its own code."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.artifact import ArtifactManifest, Parameter
from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError
from models.runtime.artifact import WEIGHTS_FILE, TrainingArtifact

__all__ = ["wrap_weights"]


def wrap_weights(
    weights: Mapping[str, NDArray[Any]] | Path | str,
    *,
    out: Path | str | None = None,
    name: str | None = None,
    buffers: Sequence[str] = (),
) -> TrainingArtifact:
    """Wrap named arrays, or those of an ``.npz`` file; a trainer is handed them in their order.

    Floating-point arrays only; they become float32. Those whose name matches one of the shell patterns
    ``buffers`` are no weights but running statistics: averaged over the fleet, never coded coarsely. With
    ``out`` the artifact is written to that folder.

    Raises:
        ArtifactError: no readable file, no arrays, or one that is not of finite numbers.
        StorageError: the folder cannot be written.
    """
    arrays = _read(Path(weights)) if isinstance(weights, Path | str) else dict(weights)
    if not arrays:
        raise ArtifactError("there are no weights to wrap", hint='np.savez("weights.npz", w=w, b=b)')
    tensors: dict[str, NDArray[np.float32]] = {}
    for key, array in arrays.items():
        if array.dtype.kind != "f" or not array.size:
            raise ArtifactError(
                f"the array {key!r} is {array.dtype}{list(array.shape)}", hint="weights are floating point"
            )
        tensors[key] = array.astype(np.float32)
        if not np.isfinite(tensors[key]).all():
            raise ArtifactError(f"the array {key!r} holds a value that is not a finite float32")
    content = {WEIGHTS_FILE: b"".join(tensor.astype("<f4").tobytes() for tensor in tensors.values())}
    fallback = Path(weights).stem if isinstance(weights, Path | str) else "weights"
    manifest = ArtifactManifest(
        name=name or fallback,
        loss="",
        metrics=(),
        optimizer="",
        slots=(),
        hyper={},
        parameters=tuple(
            Parameter(name=key, shape=tensor.shape, kind=_kind(key, buffers))
            for key, tensor in tensors.items()
        ),
        inputs=(),
        files={file: BlobRef.of(octets) for file, octets in content.items()},
    )
    artifact = TrainingArtifact.of(manifest, content)
    return artifact if out is None else artifact.save(out)


def _kind(name: str, buffers: Sequence[str]) -> str:
    return "buffer" if any(fnmatchcase(name, pattern) for pattern in buffers) else "weight"


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # numpy and zipfile answer damage with a dozen kinds of exception
        raise ArtifactError(
            f"{path} is no file of weights: {error}", hint='np.savez("weights.npz", w=w, b=b) writes one'
        ) from None
