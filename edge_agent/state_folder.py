"""The state folder: the one place on a device where the agent keeps what must outlive it.

agent.db        the outbox, the ledger and small facts       identity.json   who this folder is
samples.db      training samples (unless configured elsewhere)
blobs/          downloads by hash                            artifacts/      opened training artifacts
personal/       personal tensors, for apps to read           model.json      the newest model, for apps
checkpoint      where a long training is                     run/            what may vanish at any time
quarantine/     stores that were damaged
"""

import functools
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from edge_agent.model_notice import PERSONAL_FOLDER
from edge_agent.outbox import Outbox
from edge_agent.sqlite_file import is_damage
from fl_io.crash import crash_point
from fl_io.disk import DISK, Disk, make_folder, sweep_unfinished, write_file
from fl_protocol.clock import Clock
from fl_protocol.errors import StorageError
from fl_protocol.update import INCARNATION_BYTES

__all__ = ["StateFolder"]

_SEED_BYTES = 32
_MAX_IDENTITY_BYTES = 4096


class StateFolder:
    """A state folder, held by one agent at a time.

    ``incarnation`` (8 bytes) names this folder and its history in every update; a folder whose history
    was lost gets a new one. ``device_seed`` (32 bytes, secret) never leaves the device.
    ``quarantined`` says, a sentence each, what was damaged and set aside.

    Raises:
        StorageError: the folder cannot be made or written, or another agent holds it.
    """

    __slots__ = (
        "_disk",
        "_entropy",
        "_let_go",
        "_newborn",
        "device_seed",
        "incarnation",
        "path",
        "quarantined",
    )

    def __init__(
        self, path: Path, *, disk: Disk = DISK, entropy: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self.path = path
        self.quarantined: list[str] = []
        self._disk = disk
        self._entropy = entropy
        self._let_go: Callable[[], None] | None = None
        self._newborn = False
        try:
            make_folder(self.path, purpose="agent.folder", disk=disk, mode=0o770)
            for folder in (self.blobs, self.artifacts, self.personal, self.run):
                disk.add_folder(folder, mode=0o750)
            self._hold()
            for folder in (self.path, self.personal):
                sweep_unfinished(folder, disk=disk)
        except OSError as error:
            raise StorageError(
                f"cannot use the state folder {path}: {error.strerror or error}",
                hint="choose a folder this user can write to with state = ... in agent.toml",
            ) from error
        try:
            self.incarnation, self.device_seed = self._identity()
        except BaseException:
            self.close()
            raise

    @property
    def database(self) -> Path:
        """The outbox file."""
        return self.path / "agent.db"

    @property
    def samples(self) -> Path:
        """Where samples are unless the configuration says otherwise."""
        return _inside(self.path, "samples.db")

    @property
    def blobs(self) -> Path:
        """Downloads, one file per blob."""
        return _inside(self.path, "blobs")

    @property
    def artifacts(self) -> Path:
        """Training artifacts, one folder each."""
        return _inside(self.path, "artifacts")

    @property
    def personal(self) -> Path:
        """Copies of the personal tensors, for apps."""
        return _inside(self.path, PERSONAL_FOLDER)

    @property
    def checkpoint(self) -> Path:
        """Where a long training leaves its state."""
        return _inside(self.path, "checkpoint")

    @property
    def run(self) -> Path:
        """Files that may vanish: the status."""
        return _inside(self.path, "run")

    def open_outbox(self, *, max_bytes: int, max_age_s: float, clock: Clock) -> Outbox:
        """Open the outbox. Where it is damaged it is set aside; then, and where it is gone, this folder
        becomes a new incarnation.

        Raises:
            StorageError: the disk refuses a fresh one too.
        """
        if not self._newborn and not self._disk.exists(self.database):
            self.incarnation, self.device_seed = self._new_identity()
        try:
            return Outbox(self.database, max_bytes=max_bytes, max_age_s=max_age_s, clock=clock)
        except StorageError as error:
            if not is_damage(error):
                raise
            # Its ledger is gone: what the coordinator knows of the old history is not ours to repeat. The
            # new name comes first, or a crash in between would leave the old one on an empty ledger.
            self.incarnation, self.device_seed = self._new_identity()
            self._quarantine(self.database, str(error.__cause__))
        return Outbox(self.database, max_bytes=max_bytes, max_age_s=max_age_s, clock=clock)

    def drop_checkpoint(self) -> None:
        """Remove where a training was that is over; raises OSError."""
        self._disk.remove(self.checkpoint)

    def set_aside(self, name: str, content: bytes, reason: str) -> str:
        """Keep damaged content in ``quarantine/``, for a person to look at; a sentence that says so.

        Raises:
            StorageError: the disk refuses.
        """
        shelf = self.path / "quarantine"
        make_folder(shelf, purpose="agent.shelf", disk=self._disk, mode=0o750)
        marked = f"{name}.{secrets.token_hex(4)}"
        write_file(shelf / marked, content, purpose="agent.set_aside", disk=self._disk, mode=0o600)
        said = f"{name} was damaged ({reason}) and is now quarantine/{marked}"
        self.quarantined.append(said)
        return said

    def close(self) -> None:
        """Let the folder go."""
        if self._let_go is not None:
            self._let_go()
            self._let_go = None

    def __enter__(self) -> "StateFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hold(self) -> None:
        path = _inside(self.path, "lock")
        try:
            self._let_go = self._disk.lock(path, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            holder = self._disk.read(path, size=32).decode("ascii", "replace").strip()
            raise StorageError(
                f"the state folder {self.path} is held by another agent (process {holder or 'unknown'})",
                hint="stop that agent, or give this one a state folder of its own",
            ) from None

    def _identity(self) -> tuple[bytes, bytes]:
        path = _inside(self.path, "identity.json")
        try:
            body = json.loads(self._disk.read(path, size=_MAX_IDENTITY_BYTES))
            incarnation, seed = bytes.fromhex(body["incarnation"]), bytes.fromhex(body["device_seed"])
            if len(incarnation) != INCARNATION_BYTES or len(seed) != _SEED_BYTES:
                raise ValueError("an identity of the wrong length")
        except FileNotFoundError:
            return self._new_identity()
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._quarantine(path, str(error))
            return self._new_identity()
        return incarnation, seed

    def _new_identity(self) -> tuple[bytes, bytes]:
        incarnation, seed = self._entropy(INCARNATION_BYTES), self._entropy(_SEED_BYTES)
        body = json.dumps({"incarnation": incarnation.hex(), "device_seed": seed.hex()})
        path = _inside(self.path, "identity.json")
        write_file(path, body.encode(), purpose="agent.identity", disk=self._disk, mode=0o600)
        self._newborn = True
        return incarnation, seed

    def _quarantine(self, path: Path, reason: str) -> None:
        """Set a file aside with its sqlite companions; the name tells which one it was."""
        shelf = self.path / "quarantine"
        mark = secrets.token_hex(4)
        try:
            make_folder(shelf, purpose="agent.shelf", disk=self._disk, mode=0o750)
            # The file itself goes first: sqlite throws away a log that it finds without one.
            for companion in ("", "-wal", "-shm"):
                old = path.with_name(path.name + companion)
                if old.exists():
                    self._disk.rename(old, shelf / f"{path.name}.{mark}{companion}")
                    crash_point("agent.quarantine.moved")
            self._disk.sync_directory(shelf)
            crash_point("agent.quarantine.kept")
            self._disk.sync_directory(path.parent)
            crash_point("agent.quarantine.gone")
        except OSError as error:
            raise StorageError(f"cannot set the damaged {path} aside: {error.strerror}") from error
        self.quarantined.append(
            f"{path.name} was damaged ({reason}) and is now quarantine/{path.name}.{mark}"
        )


@functools.lru_cache(maxsize=64)
def _inside(folder: Path, name: str) -> Path:
    """A path of a state folder; asked at every turn, and by many agents where they share a process."""
    return folder / name
