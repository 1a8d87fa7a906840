"""The predictor: an app on the device uses the newest model while the agent fetches and trains the next."""

import hashlib
import logging
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_agent.model_notice import NOTICE_NAME, PERSONAL_FOLDER, ModelNotice, read_notice
from edge_agent.personal import PersonalTensors, initial_personal, personal_tensors
from edge_agent.sample_form import shaped
from edge_agent.sealed import unseal
from fl_protocol.artifact import Input
from fl_protocol.codec import decode_model
from fl_protocol.errors import ArtifactError, CodecError, LayoutError, StorageError
from fl_protocol.version import VersionId
from models.runtime import PREFERENCE, Session, TrainingArtifact, open_session, split_flat

__all__ = ["Predictor"]

_POLL_S = 0.2
_RETRY_S = 5.0
_TRIES = 5
_ROWS_AT_ONCE = 256
_INFER = "infer"
_PINNED = re.compile(r"\d{1,15}\.\d{1,15}")
_RIGHTS = "this user must be in the group of the agent's (lichen), and the group must have the right to read"
_log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int] | None, ...]
"""What the notice and the personal file were, as ``stat`` tells: changed, and the model is read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A version as it is used: an open artifact, and the tensors to run it with."""

    notice: ModelNotice
    stamp: _Stamp
    artifact: TrainingArtifact
    session: Session
    weights: PersonalTensors


class Predictor:
    """Predicts with the model that the agent of this device last downloaded, with the device's own personal
    tensors in it. Reads only, so that a user of the agent's group may have one; usable from several threads.

    ``path`` is the agent's state folder (``state`` in agent.toml). A newer version, and what a training left
    of personal tensors, is taken up by the next ``predict`` after it is here. ``version`` may name one
    instead, as ``"1.7"``: none is used before that one is here, and none after it.

    Raises:
        StorageError: there is no such folder.
    """

    def __init__(self, path: Path | str, *, version: str = "newest") -> None:
        if version != "newest" and _PINNED.fullmatch(version) is None:
            raise ValueError(f"version must be 'newest' or as '1.7', not {version!r}")
        self._folder = Path(path)
        if not self._folder.is_dir():
            raise StorageError(
                f"there is no state folder at {self._folder}",
                hint="give the folder that agent.toml names with state = ...; the agent makes it",
            )
        self._wanted = version
        self._lock = threading.Lock()
        self._model: _Model | None = None
        self._retry_at = 0.0

    @property
    def version(self) -> VersionId | None:
        """The version that was used last; ``None`` before the first."""
        model = self._model
        return model.notice.version if model is not None else None

    def wait(self, timeout: float) -> bool:
        """Wait until there is a model, for at most ``timeout`` seconds; whether there is one.

        Raises:
            StorageError: this user may not read it.
            ArtifactError: it cannot be used: see ``predict``.
        """
        ends = time.monotonic() + timeout
        while not self._is_there():
            left = ends - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_POLL_S, left))
        with self._lock:
            self._current()
        return True

    def predict(self, batch: ArrayLike) -> NDArray[np.float32]:
        """The model's output for ``batch`` [rows, ...], rows as the samples are: float32[rows, ...].

        Raises:
            ArtifactError: there is no model yet, or none that can be used: weights alone, no runtime.
            StorageError: this user may not read it.
            LayoutError: ``batch`` has rows of another shape than the model takes.
        """
        with self._lock:
            model = self._current()
            rows = _rows(model.artifact, batch)
            pieces = [
                model.session.infer(model.weights, rows[start : start + _ROWS_AT_ONCE])
                for start in range(0, len(rows), _ROWS_AT_ONCE)
            ]
        return np.concatenate(pieces).astype(np.float32, copy=False)

    def _is_there(self) -> bool:
        if self._model is not None:
            return True
        notice = self._notice()
        return notice is not None and self._fits(notice)

    def _fits(self, notice: ModelNotice) -> bool:
        return self._wanted in ("newest", f"{notice.version.epoch}.{notice.version.number}")

    def _current(self) -> _Model:
        """The model to use now. One that cannot be loaded does not take the place of one that was."""
        model = self._model
        if model is not None and (self._wanted != "newest" or time.monotonic() < self._retry_at):
            return model
        if model is not None and self._look(model.notice) == model.stamp:
            return model
        try:
            self._model = self._load()
        except (ArtifactError, StorageError, CodecError) as error:
            if model is None:
                raise
            self._retry_at = time.monotonic() + _RETRY_S
            _log.warning("still predicting with version %s: %s", model.notice.version, error)
            return model
        return self._model

    def _look(self, notice: ModelNotice) -> _Stamp:
        names = [NOTICE_NAME, f"{PERSONAL_FOLDER}/{notice.personal}"][: 2 if notice.personal else 1]
        return tuple(_seen(self._folder / name) for name in names)

    def _load(self) -> _Model:
        """Read what the notice names; again, where the agent put another in its place meanwhile."""
        notice = self._notice()
        for _ in range(_TRIES):
            if notice is None or not self._fits(notice):
                raise self._nothing_yet(notice)
            try:
                return self._opened(notice)
            except (ArtifactError, StorageError, CodecError):
                newer = self._notice()
                if newer == notice:
                    raise
                notice = newer
        raise StorageError(
            f"the model in {self._folder} is replaced faster than it can be read",
            hint="publish versions less often (publish_every_s in fleet.toml)",
        )

    def _notice(self) -> ModelNotice | None:
        try:
            (self._folder / NOTICE_NAME).open("rb").close()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self._folder / NOTICE_NAME, error) from None
        return read_notice(self._folder)

    def _nothing_yet(self, notice: ModelNotice | None) -> ArtifactError:
        newest = f"the newest is {notice.version}" if notice else "no version was downloaded yet"
        wanted = "" if self._wanted == "newest" else f" of version {self._wanted}"
        return ArtifactError(
            f"there is no model{wanted} in {self._folder}: {newest}",
            hint="call wait(timeout) first; `lichen-agent status` says what the agent waits for",
        )

    def _opened(self, notice: ModelNotice) -> _Model:
        stamp = self._look(notice)
        state = self._device_state(notice)
        # A training replaces the personal tensors under a name that stays: those of a later version may be
        # there already. While the notice stood, they were its own.
        if self._notice() != notice:
            raise StorageError(f"{self._folder / NOTICE_NAME} was replaced as it was read")
        old = self._model
        if old is not None and old.notice.artifact == notice.artifact:
            artifact, session = old.artifact, old.session
        else:
            artifact, session = self._open_artifact(notice)
        content = _content(self._folder / "blobs" / notice.weights, notice.weights)
        shared = split_flat(decode_model(content, artifact.layout), artifact.layout)
        weights = {**shared, **_personal(artifact, state)}
        # A session reads a graph when it first needs it, and the agent may remove the file before that.
        session.infer(weights, _blank(artifact))
        return _Model(notice=notice, stamp=stamp, artifact=artifact, session=session, weights=weights)

    def _open_artifact(self, notice: ModelNotice) -> tuple[TrainingArtifact, Session]:
        artifact = TrainingArtifact.open(self._folder / "artifacts" / notice.artifact, complete=False)
        if artifact.digest.hex() != notice.artifact:
            raise ArtifactError(
                f"the artifact {notice.artifact[:16]} is damaged", hint="the agent fetches it again"
            )
        if not any(name.startswith(f"{_INFER}.") for name in artifact.manifest.files):
            raise ArtifactError(
                f"the artifact {artifact.manifest.name!r} holds weights alone and nothing to run them with",
                hint="build it from a forward graph, or predict with the code of your own trainer",
            )
        # What the agent runs it on comes first; the app's own packages may be others than the agent's.
        session, _ = open_session(artifact, list(dict.fromkeys((*notice.runtimes, *PREFERENCE))))
        return artifact, session

    def _device_state(self, notice: ModelNotice) -> bytes:
        """The personal tensors as the last training with the notice's artifact left them; empty where none
        has ended."""
        if not notice.personal:
            return b""
        path = self._folder / PERSONAL_FOLDER / notice.personal
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from None
        unseal(content, str(path))
        return content


def _personal(artifact: TrainingArtifact, state: bytes) -> PersonalTensors:
    try:
        return personal_tensors(artifact, state)
    except LayoutError:  # of the artifact before: no training on this one has ended yet
        return initial_personal(artifact)


def _rows(artifact: TrainingArtifact, batch: ArrayLike) -> NDArray[np.generic]:
    """``batch`` in dtype and shape as the graph takes it; an image may come flat, or the reverse."""
    entry = _input(artifact)
    rows = np.asarray(batch)
    wanted = entry.shape[1:]
    fitting = shaped(rows, wanted) if rows.ndim and len(rows) else None
    if fitting is None:
        raise LayoutError(
            f"a batch of shape {list(rows.shape)}, the model takes [rows, {', '.join(map(str, wanted))}]",
            hint="predict takes one row or more: for one sample give sample[None]",
        )
    return np.ascontiguousarray(fitting, dtype=entry.dtype)


def _blank(artifact: TrainingArtifact) -> NDArray[np.generic]:
    """One row of zeros."""
    entry = _input(artifact)
    return np.zeros([max(dim, 1) for dim in (1, *entry.shape[1:])], entry.dtype)


def _input(artifact: TrainingArtifact) -> Input:
    return next(entry for entry in artifact.manifest.inputs if entry.name == "x")


def _seen(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _content(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StorageError(f"{path} is damaged", hint="the agent fetches it again when it next trains")
    return content


def _unreadable(path: Path, error: OSError) -> StorageError:
    hint = _RIGHTS if isinstance(error, PermissionError) else "was the state folder changed by hand?"
    return StorageError(f"cannot read {path}: {error.strerror}", hint=hint)
