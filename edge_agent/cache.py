"""The cache: artifacts and weights by their hash; the current ones and those before them.

A file stands under its final name only when it was verified and is durable. It is hashed once more when a
process meets it first, so that a damaged card costs a download and not a participation.
"""

import hashlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from fl_io.disk import DISK, Disk, move_file
from fl_protocol.artifact import MANIFEST_NAME, MAX_MANIFEST_BYTES, ArtifactManifest
from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError
from fl_protocol.task import TaskManifest

__all__ = ["Cache", "files_for_a_device", "runtimes_found"]

KEPT = 2
"""The current one and the one before."""
_ARRIVING = ".manifest.json"
_GRAPHS = {"onnx": ".onnx", "numpy": ".onnx", "litert": ".tflite", "tflite": ".tflite"}
"""How the files end that each runtime runs."""
_PACKAGES = {"onnx": "onnxruntime", "litert": "ai_edge_litert", "tflite": "tflite_runtime"}
"""The package of each runtime that has one."""


class Cache:
    """Downloaded blobs under ``blobs`` and training artifacts under ``artifacts``.

    Of an artifact's graphs only those are fetched that one of ``runtimes`` runs; all where none is named.

    Raises:
        OSError: from every method, if the disk refuses.
    """

    def __init__(
        self, blobs: Path, artifacts: Path, *, runtimes: Sequence[str] = (), disk: Disk = DISK
    ) -> None:
        self._blobs = blobs
        self._artifacts = artifacts
        self.damaged = 0
        """Files that were not what they had been."""
        self._runtimes = tuple(runtimes)
        self._disk = disk
        self._sound: set[Path] = set()

    def weights(self, ref: BlobRef) -> Path:
        """Where the blob of these weights is, once it is here."""
        return self._blobs / ref.sha256.hex()

    def artifact(self, ref: BlobRef) -> Path:
        """The folder of the artifact whose ``manifest.json`` is ``ref``."""
        return self._artifacts / ref.sha256.hex()

    def missing(self, task: TaskManifest) -> Mapping[Path, BlobRef]:
        """What must still be fetched for this task, and where to; empty when all is here.

        The files of an artifact are known only when its manifest is: ask again when these are here.

        Raises:
            ArtifactError: the artifact's manifest cannot be read.
        """
        if task.artifact.size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"an artifact manifest of {task.artifact.size} bytes is too large")
        goals = {self.weights(task.weights): task.weights}
        folder = self.artifact(task.artifact)
        sealed, arriving = folder / MANIFEST_NAME, folder / _ARRIVING
        if self._is_sound(sealed, task.artifact):
            manifest_path = sealed
        elif self._is_sound(arriving, task.artifact):
            manifest_path = arriving
        else:
            folder.mkdir(parents=True, exist_ok=True)
            goals[arriving] = task.artifact
            manifest_path = None
        if manifest_path is not None:
            manifest = ArtifactManifest.from_json(manifest_path.read_bytes())
            needed = files_for_a_device(manifest, self._runtimes)
            goals |= {folder / name: ref for name, ref in needed.items()}
        goals = {path: ref for path, ref in goals.items() if not self._is_sound(path, ref)}
        if manifest_path == arriving and not any(path.parent == folder for path in goals):
            # The name by which others open the artifact comes last: it says that all of it is here.
            move_file(arriving, sealed, purpose="agent.artifact", disk=self._disk)
            self._sound.add(sealed)
        return goals

    def distrust(self) -> None:
        """Hash everything again before it is used again."""
        self._sound.clear()

    def drop_old(self, task: TaskManifest, *, spare: Collection[str] = ()) -> None:
        """Keep what this task needs, what was fetched last before it, and what is named in ``spare``."""
        keep = {self.weights(task.weights).name, self.artifact(task.artifact).name, *spare}
        for folder in (self._blobs, self._artifacts):
            others = [path for path in folder.iterdir() if not _belongs(path.name, keep)]
            others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            whole = [path for path in others if not path.name.startswith(".")]
            for path in [*whole[KEPT - 1 :], *(path for path in others if path.name.startswith("."))]:
                self._sound = {sound for sound in self._sound if path not in (sound, sound.parent)}
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    self._disk.remove(path)

    def _is_sound(self, path: Path, ref: BlobRef) -> bool:
        if path in self._sound:
            return True
        try:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
        except FileNotFoundError:
            return False
        except OSError:
            digest = b""  # a bad sector under it: another file will lie elsewhere
        if digest == ref.sha256:
            self._sound.add(path)
            return True
        self.damaged += 1
        self._disk.remove(path)
        return False


def runtimes_found(runtimes: Sequence[str]) -> tuple[str, ...]:
    """Those of ``runtimes`` whose package is here, or all where none is: graphs are fetched for no other.

    Whether one of them works is found out by a session, in a worker: to load it here would cost memory.
    """
    found = tuple(name for name in runtimes if name not in _PACKAGES or find_spec(_PACKAGES[name]))
    return found or tuple(runtimes)


def files_for_a_device(manifest: ArtifactManifest, runtimes: Sequence[str] = ()) -> Mapping[str, BlobRef]:
    """The files of an artifact that a device needs: all, but graphs only for its ``runtimes`` (where any is
    named), and ``weights.bin`` only where the artifact has parameters that travel in it alone (frozen or
    personal ones).

    Raises:
        ArtifactError: the manifest names a file that a folder of ours uses for itself.
    """
    if MANIFEST_NAME in manifest.files:
        raise ArtifactError(f"an artifact manifest that names {MANIFEST_NAME} as one of its files")
    run_here = {_GRAPHS[name] for name in runtimes if name in _GRAPHS}
    unused = set(_GRAPHS.values()) - run_here if run_here else set()
    return {
        name: ref
        for name, ref in manifest.files.items()
        if Path(name).suffix not in unused and (name != "weights.bin" or manifest.needs_initial_weights)
    }


def _belongs(name: str, keep: set[str]) -> bool:
    """Whether a file is one to keep, or a part of one on its way."""
    return any(name == kept or name.startswith(f".{kept}.") for kept in keep)
