"""The notice: which model is the newest on this device, for the apps that predict with it.

``model.json`` in the state folder names a version's files. It is written when all of them are here and
durable, and replaced in one step: who reads it finds the files, or finds that it changed meanwhile.

The personal tensors are shown as a copy in ``personal/``: apps of another user cannot open the outbox. The
file bears the name of the artifact that they belong to, and its content is sealed, so that a training
replaces it and leaves ``model.json`` as it is: an fsync less for each. At any moment the two on the disk go
together; who reads both is sure of a pair if ``model.json`` is the same after as before. Only a power cut on
a file system that does not keep renames in their order may pair a version with the personal tensors of
another training, of the same artifact still, until the agent starts.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.sealed import unseal
from fl_io.disk import DISK, Disk, write_file
from fl_protocol.errors import MessageError, StorageError
from fl_protocol.fields import Fields
from fl_protocol.task import TaskManifest
from fl_protocol.version import VersionId

__all__ = ["NOTICE_NAME", "PERSONAL_FOLDER", "ModelNotice", "NoticeBoard", "read_notice"]

NOTICE_NAME = "model.json"
PERSONAL_FOLDER = "personal"
FORMAT = 1
MAX_NOTICE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNotice:
    """One version's files: ``artifacts/ARTIFACT/``, ``blobs/WEIGHTS``, ``personal/PERSONAL`` unless empty.

    The first two are sha256 in hex, of the artifact's manifest and of the published weights as downloaded.
    ``personal`` is the artifact's too, where this device has personal tensors for it; in a folder that an
    older agent left it is the sha256 of the device state. ``runtimes`` is what the agent would run it on, in
    order.
    """

    version: VersionId
    artifact: str
    weights: str
    personal: str = ""
    runtimes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """The content of ``model.json``."""
        return _content(self)

    @classmethod
    def from_json(cls, text: bytes) -> "ModelNotice":
        """Read ``model.json``.

        Raises:
            StorageError: not such a file, or one of a newer agent.
        """
        try:
            fields = Fields(json.loads(text))
            if fields.integer("format") != FORMAT:
                raise ValueError(f"format {fields.integer('format')} is not {FORMAT}")
            return cls(
                version=VersionId(
                    epoch=fields.integer("epoch"),
                    number=fields.integer("number"),
                    digest=bytes.fromhex(fields.text("digest")),
                ),
                artifact=_hex(fields.text("artifact")),
                weights=_hex(fields.text("weights")),
                personal=_hex(fields.text("personal")) if fields.text("personal") else "",
                runtimes=tuple(str(name) for name in fields.array("runtimes", most=64)),
            )
        except (ValueError, MessageError) as error:
            raise StorageError(
                f"{NOTICE_NAME} cannot be read: {error}", hint="is it of another version of lichen?"
            ) from None


@functools.lru_cache(maxsize=4)
def _content(notice: ModelNotice) -> bytes:
    """Agents that share a process show the same."""
    body: dict[str, Any] = {
        "format": FORMAT,
        "epoch": notice.version.epoch,
        "number": notice.version.number,
        "digest": notice.version.digest.hex(),
        "artifact": notice.artifact,
        "weights": notice.weights,
        "personal": notice.personal,
        "runtimes": list(notice.runtimes),
    }
    return (json.dumps(body) + "\n").encode()


class NoticeBoard:
    """Keeps the notice of one state folder.

    Raises:
        StorageError: from every method, if the disk refuses.
    """

    __slots__ = ("_disk", "_folder", "_runtimes", "_shown", "_tidy")

    def __init__(self, folder: Path, *, runtimes: Sequence[str], disk: Disk = DISK) -> None:
        self._folder = folder
        self._runtimes = tuple(runtimes)
        self._disk = disk
        self._shown = read_notice(folder, disk=disk)
        self._tidy = False
        """Whether nothing lies beside the personal tensors that are shown."""

    @property
    def files(self) -> frozenset[str]:
        """The names of the artifact and the weights that are shown: they must stay where they are."""
        return frozenset((self._shown.artifact, self._shown.weights)) if self._shown else frozenset()

    @property
    def artifact(self) -> bytes:
        """The digest of the artifact that is shown; empty where none is."""
        return bytes.fromhex(self._shown.artifact) if self._shown else b""

    def device_state(self, artifact: bytes) -> bytes:
        """The personal tensors that are shown, if they are this artifact's and whole; else empty."""
        shown = self._shown
        if shown is None or not shown.personal or artifact != self.artifact:
            return b""
        try:
            content = self._disk.read(self._folder / PERSONAL_FOLDER / shown.personal)
            unseal(content, "the personal copy")
        except (OSError, StorageError):
            return b""
        return content

    def shows(self, version: VersionId) -> bool:
        """Whether it is this version that is shown."""
        return self._shown is not None and self._shown.version == version

    def show(self, manifest: TaskManifest, device_state: bytes) -> None:
        """Show a version whose files are all here, with the personal tensors as they are now."""
        artifact = _named(manifest.artifact.sha256)
        self._put(
            ModelNotice(
                version=manifest.version,
                artifact=artifact,
                weights=_named(manifest.weights.sha256),
                personal=artifact if device_state else "",
                runtimes=self._runtimes,
            ),
            device_state,
        )

    def renew(self, device_state: bytes) -> None:
        """Show the version that is shown already with these personal tensors."""
        shown = self._shown
        if shown is not None:
            notice = ModelNotice(
                version=shown.version,
                artifact=shown.artifact,
                weights=shown.weights,
                personal=shown.artifact if device_state else "",
                runtimes=self._runtimes,
            )
            self._put(notice, device_state)

    def _put(self, notice: ModelNotice, device_state: bytes) -> None:
        folder = _inside(self._folder, PERSONAL_FOLDER)
        # Whole, but not named at once: a power cut in the next moments shows apps what was before, and that
        # is here. The outbox's next commit takes these names along, on a file system with a journal.
        if notice.personal and not self._holds(folder / notice.personal, device_state):
            write_file(
                folder / notice.personal,
                device_state,
                purpose="agent.personal",
                disk=self._disk,
                mode=0o640,
                name_at_once=False,
            )
        if notice != self._shown:
            write_file(
                _inside(self._folder, NOTICE_NAME),
                notice.to_json(),
                purpose="agent.notice",
                disk=self._disk,
                mode=0o640,
                name_at_once=False,
            )
            self._tidy = self._tidy and self._shown is not None and self._shown.personal == notice.personal
            self._shown = notice
        if self._tidy:
            return
        try:
            for name in self._disk.names(folder):
                if name != notice.personal:
                    self._disk.remove(folder / name)
        except OSError as error:
            raise StorageError(f"cannot clear {folder}: {error.strerror}") from error
        self._tidy = True

    def _holds(self, path: Path, content: bytes) -> bool:
        try:
            return self._disk.sha256(path) == hashlib.sha256(content).digest()
        except OSError:
            return False


def read_notice(folder: Path, *, disk: Disk = DISK) -> ModelNotice | None:
    """The notice in a state folder; ``None`` where there is none that can be read."""
    try:
        return ModelNotice.from_json(disk.read(folder / NOTICE_NAME, size=MAX_NOTICE_BYTES))
    except (OSError, StorageError):
        return None


@functools.lru_cache(maxsize=16)
def _inside(folder: Path, name: str) -> Path:
    return folder / name


@functools.lru_cache(maxsize=16)
def _named(sha256: bytes) -> str:
    """A hash as files are named by it: one text for all agents of a process."""
    return sha256.hex()


def _hex(text: str) -> str:
    if len(bytes.fromhex(text)) != hashlib.sha256().digest_size:
        raise ValueError(f"{text!r} is no sha256")
    return text
