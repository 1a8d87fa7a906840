"""The cache: artifacts and weights by their hash; the current ones and those before them.

A file stands under its final name only when it was verified and is durable. It is hashed once more when a
process meets it first, so that a damaged card costs a download and not a participation.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

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

    __slots__ = (
        "_artifacts",
        "_blobs",
        "_disk",
        "_runtimes",
        "_sound",
        "_whole",
        "_whole_artifact",
        "damaged",
    )

    def __init__(
        self, blobs: Path, artifacts: Path, *, runtimes: Sequence[str] = (), disk: Disk = DISK
    ) -> None:
        self._blobs = blobs
        self._artifacts = artifacts
        self.damaged = 0
        """Files that were not what they had been."""
        self._runtimes = tuple(runtimes)
        self._disk = disk
        self._sound: dict[Path, None] = {}
        self._whole: tuple[bytes, bytes] | None = None
        """The artifact and weights of which nothing was missing when it was last asked."""
        self._whole_artifact = b""

    def weights(self, ref: BlobRef) -> Path:
        """Where the blob of these weights is, once it is here."""
        return _inside(self._blobs, ref.sha256.hex())

    def artifact(self, ref: BlobRef) -> Path:
        """The folder of the artifact whose ``manifest.json`` is ``ref``."""
        return _inside(self._artifacts, ref.sha256.hex())

    def missing(self, task: TaskManifest) -> Mapping[Path, BlobRef]:
        """What must still be fetched for this task, and where to; empty when all is here.

        The files of an artifact are known only when its manifest is: ask again when these are here.

        Raises:
            ArtifactError: the artifact's manifest cannot be read.
        """
        wanted = task.artifact.sha256, task.weights.sha256
        if wanted == self._whole:
            return {}
        if task.artifact.size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"an artifact manifest of {task.artifact.size} bytes is too large")
        goals = {self.weights(task.weights): task.weights}
        if task.artifact.sha256 == self._whole_artifact:
            if not self._is_sound(*next(iter(goals.items()))):
                return goals
            self._whole = wanted
            self._sound = {}
            return {}
        folder = self.artifact(task.artifact)
        sealed, arriving = _inside(folder, MANIFEST_NAME), _inside(folder, _ARRIVING)
        if self._is_sound(sealed, task.artifact):
            manifest_path = sealed
        elif self._is_sound(arriving, task.artifact):
            manifest_path = arriving
        else:
            self._disk.add_folder(folder)
            goals[arriving] = task.artifact
            manifest_path = None
        if manifest_path is not None:
            needed = _needed(self._disk.read(manifest_path), self._runtimes)
            goals |= {_inside(folder, name): ref for name, ref in needed.items()}
        goals = {path: ref for path, ref in goals.items() if not self._is_sound(path, ref)}
        if manifest_path == arriving and not any(path.parent == folder for path in goals):
            # The name by which others open the artifact comes last: it says that all of it is here.
            move_file(arriving, sealed, purpose="agent.artifact", disk=self._disk)
            self._sound[sealed] = None
        if manifest_path is not None and not goals:
            self._whole, self._whole_artifact = wanted, task.artifact.sha256
            # Of these nothing is asked again; should it be, they are hashed again.
            self._sound = {}
        return goals

    def distrust(self) -> None:
        """Hash everything again before it is used again."""
        self._sound = {}
        self._whole, self._whole_artifact = None, b""

    def drop_old(self, task: TaskManifest, *, spare: Collection[str] = ()) -> None:
        """Keep what this task needs, what was fetched last before it, and what is named in ``spare``."""
        keep = {task.weights.sha256.hex(), task.artifact.sha256.hex(), *spare}
        for folder in (self._blobs, self._artifacts):
            others = [name for name in self._disk.names(folder) if name not in keep]
            whole = [name for name in others if not name.startswith(".")]
            parts = [name for name in others if name.startswith(".") and not _is_part_of(name, keep)]
            for name in [*whole[KEPT - 1 :], *parts]:
                path = _inside(folder, name)
                self._forget_whole(name)
                if self._sound:
                    self._sound = {sound: None for sound in self._sound if path not in (sound, sound.parent)}
                if self._disk.is_folder(path):
                    self._disk.remove_folder(path)
                else:
                    self._disk.remove(path)

    def _forget_whole(self, name: str) -> None:
        """What is dropped is not whole any more."""
        if self._whole is not None and name in (self._whole[0].hex(), self._whole[1].hex()):
            self._whole = None
        if name == self._whole_artifact.hex():
            self._whole_artifact = b""

    def _is_sound(self, path: Path, ref: BlobRef) -> bool:
        if path in self._sound:
            return True
        try:
            digest = self._disk.sha256(path)
        except FileNotFoundError:
            return False
        except OSError:
            digest = b""  # a bad sector under it: another file will lie elsewhere
        if digest == ref.sha256:
            self._sound[path] = None
            return True
        self.damaged += 1
        self._disk.remove(path)
        return False


@functools.lru_cache(maxsize=4)
def _needed(manifest: bytes, runtimes: tuple[str, ...]) -> Mapping[str, BlobRef]:
    """See ``files_for_a_device``. A manifest takes long to read, and is asked about at every turn."""
    return MappingProxyType(dict(files_for_a_device(ArtifactManifest.from_json(manifest), runtimes)))


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


@functools.lru_cache(maxsize=256)
def _inside(folder: Path, name: str) -> Path:
    """A path of the cache; asked at every turn, and by many agents where they share a process."""
    return folder / name


def _is_part_of(name: str, keep: set[str]) -> bool:
    """Whether a file is a part of one to keep, on its way."""
    return name[1:].partition(".")[0] in keep
