"""A training artifact: graphs, initial weights and golden steps under one manifest, every file checked.

On disk it is a folder (``open``, ``save``), fresh from the builder it lives in memory (``of``).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_io.disk import write_file
from fl_protocol.artifact import MANIFEST_NAME, MAX_MANIFEST_BYTES, ArtifactManifest
from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError, StorageError
from fl_protocol.layout import TensorLayout

__all__ = ["GOLDEN_FILE", "WEIGHTS_FILE", "TrainingArtifact"]

WEIGHTS_FILE = "weights.bin"
GOLDEN_FILE = "golden.npz"
_DAMAGED = "copy or download the artifact again; a person who changed a file must build it anew"


class TrainingArtifact:
    """An immutable artifact; ``path`` is its folder, or ``None`` while it lives in memory only."""

    def __init__(
        self, manifest: ArtifactManifest, text: bytes, *, path: Path | None, content: Mapping[str, bytes]
    ) -> None:
        self._manifest = manifest
        self._text = text
        self._digest = hashlib.sha256(text).digest()
        self._path = path
        self._content = dict(content)
        self._layout: TensorLayout | None = None

    @classmethod
    def open(cls, path: Path | str, *, complete: bool = True) -> "TrainingArtifact":
        """Open a folder and check every file that its manifest names.

        With ``complete=False`` files may be missing, as on a device that fetched only what it trains
        with; each is checked when it is read.

        Raises:
            ArtifactError: no manifest, one that does not read, a file missing, or one whose size or
                sha256 is not the manifest's (the message names it).
        """
        folder = Path(path)
        try:
            with (folder / MANIFEST_NAME).open("rb") as stream:
                text = stream.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise ArtifactError(
                f"{folder} is no training artifact: {MANIFEST_NAME}: {error.strerror}",
                hint="an artifact is a folder written by `lichen models build`",
            ) from None
        manifest = ArtifactManifest.from_json(text)
        artifact = cls(manifest, text, path=folder, content={})
        for name, ref in manifest.files.items():
            if complete or (folder / name).exists():
                artifact._check_on_disk(name, ref)
        return artifact

    @classmethod
    def of(cls, manifest: ArtifactManifest, content: Mapping[str, bytes]) -> "TrainingArtifact":
        """An artifact in memory; ``content`` maps every file of the manifest to its bytes."""
        return cls(manifest, manifest.to_json(), path=None, content=content)

    @property
    def manifest(self) -> ArtifactManifest:
        """What ``manifest.json`` says."""
        return self._manifest

    @property
    def manifest_json(self) -> bytes:
        """The bytes of ``manifest.json``, as they were read."""
        return self._text

    @property
    def layout(self) -> TensorLayout:
        """The layout of an update: trainable weights in wire order, then trainable buffers."""
        if self._layout is None:
            self._layout = self._manifest.layout
        return self._layout

    @property
    def digest(self) -> bytes:
        """sha256 of ``manifest.json`` (32 bytes): the artifact's identity."""
        return self._digest

    @property
    def path(self) -> Path | None:
        """The artifact's folder."""
        return self._path

    def read(self, name: str) -> bytes:
        """The content of one file, checked again as it is read.

        Raises:
            ArtifactError: the artifact has no such file, or it changed on disk.
        """
        ref = self._manifest.files.get(name)
        if ref is None:
            raise ArtifactError(
                f"the artifact {self._manifest.name!r} holds no {name}",
                hint="an artifact of weights alone needs a trainer of your own",
            )
        content = self._content.get(name)
        if content is None and self._path is not None:
            try:
                content = (self._path / name).read_bytes()
            except OSError as error:
                raise ArtifactError(f"{self._path / name}: {error.strerror}", hint=_DAMAGED) from None
        if content is None or hashlib.sha256(content).digest() != ref.sha256:
            raise ArtifactError(f"{name} is not the file that the manifest names", hint=_DAMAGED)
        return content

    def initial_weights(self) -> NDArray[np.float32]:
        """The weights that training starts from: float32[layout.size] in wire order.

        Raises:
            ArtifactError: ``weights.bin`` does not hold exactly the manifest's parameters, or a value
                is not finite.
        """
        everything = self._all_weights()
        travels = [tensor.name for tensor in self.layout.tensors]
        return np.concatenate([everything[name].reshape(-1) for name in travels])

    def frozen_weights(self) -> dict[str, NDArray[np.float32]]:
        """The tensors that are no part of an update, by name: frozen ones, and personal ones as they start.

        ``weights.bin`` is read only if there are any.

        Raises:
            ArtifactError: as ``initial_weights``.
        """
        travels = {tensor.name for tensor in self.layout.tensors}
        if len(travels) == len(self._manifest.parameters):
            return {}
        return {name: array for name, array in self._all_weights().items() if name not in travels}

    def _all_weights(self) -> dict[str, NDArray[np.float32]]:
        content, parameters = self.read(WEIGHTS_FILE), self._manifest.parameters
        sizes = [int(np.prod(parameter.shape, dtype=np.int64)) for parameter in parameters]
        if len(content) != 4 * sum(sizes):
            raise ArtifactError(
                f"{WEIGHTS_FILE} has {len(content)} bytes, its parameters need {4 * sum(sizes)}"
            )
        everything = np.frombuffer(content, "<f4").astype(np.float32)
        if not np.isfinite(everything).all():
            raise ArtifactError(f"{WEIGHTS_FILE} holds a value that is not finite")
        pieces = np.split(everything, np.cumsum(sizes)[:-1])
        return {
            parameter.name: piece.reshape(parameter.shape)
            for parameter, piece in zip(parameters, pieces, strict=True)
        }

    def save(self, path: Path | str) -> "TrainingArtifact":
        """Write the artifact to a folder and return it opened there.

        The manifest goes out last: a folder that was cut off in the middle does not open.

        Raises:
            StorageError: the disk refuses.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from None
        for name in self._manifest.files:
            write_file(folder / name, self.read(name), purpose="artifact.file")
        write_file(folder / MANIFEST_NAME, self._text, purpose="artifact.manifest")
        return TrainingArtifact.open(folder)

    def _check_on_disk(self, name: str, ref: BlobRef) -> None:
        file = Path(self._path or ".") / name
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
                size = stream.tell()
        except OSError as error:
            raise ArtifactError(f"{file}: {error.strerror}", hint=_DAMAGED) from None
        if size != ref.size or digest != ref.sha256:
            raise ArtifactError(
                f"{file} is damaged: {size} bytes with sha256 {digest.hex()[:16]}, "
                f"the manifest says {ref.size} bytes with {ref.sha256.hex()[:16]}",
                hint=_DAMAGED,
            )
