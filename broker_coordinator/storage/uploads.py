"""Payloads too large for a row: gathered in part files, then kept under their update's id.

The order is what makes them safe: bytes -> fsync -> range recorded; and when all are there:
sha256 -> rename -> fsync of the folder -> the accepting commit. A file without a row is swept at the next
start; a row never lacks its file.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fl_io.crash import crash_point
from fl_io.disk import DISK, Disk, make_folder, move_file, seal_file
from fl_protocol.errors import StorageError

__all__ = ["ROW_BYTES", "PayloadFiles"]

ROW_BYTES = 64 << 10
"""A payload up to this size is kept in the journal's row, a larger one is a file."""
_READ_BYTES = 1 << 20


class PayloadFiles:
    """The folders ``parts/`` and ``payloads/`` of a state folder.

    Raises:
        StorageError: from every method, if the disk refuses.
    """

    def __init__(self, folder: Path, *, disk: Disk = DISK) -> None:
        self._parts = folder / "parts"
        self._payloads = folder / "payloads"
        self._disk = disk

    def make_folders(self) -> None:
        """Create both folders, durably."""
        for folder in (self._parts, self._payloads):
            make_folder(folder, purpose="coordinator.payload_folder", disk=self._disk)

    def put(self, update_id: bytes, offset: int, content: bytes) -> None:
        """Write bytes of a part; not durable before ``sync``."""
        try:
            self._disk.write_at(self._part(update_id), offset, content)
            crash_point("coordinator.part.written")
        except OSError as error:
            raise _refused(self._part(update_id), error) from error

    def sync(self, update_ids: Iterable[bytes]) -> None:
        """Make what was put into these parts durable; only then may its ranges be recorded."""
        try:
            for update_id in update_ids:
                self._disk.sync(self._part(update_id))
            crash_point("coordinator.part.synced")
            self._disk.sync_directory(self._parts)
            crash_point("coordinator.part.durable")
        except OSError as error:
            raise _refused(self._parts, error) from error

    def has_part(self, update_id: bytes, end: int) -> bool:
        """Whether the part file is there and reaches byte ``end``."""
        try:
            return self._part(update_id).stat().st_size >= end
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _refused(self._part(update_id), error) from error

    def finish(self, update_id: bytes, *, size: int, sha256: bytes) -> bool:
        """Turn a complete part into a payload, durable on return; False if it is not the one named.

        A part of the wrong content is removed: none of its bytes can be trusted. Called again after a
        crash that came after the rename, it finds the payload and says True.
        """
        part, payload = self._part(update_id), self._payload(update_id)
        try:
            if not part.exists() and payload.exists():
                return _is(payload, size, sha256)
            if not _is(part, size, sha256):
                self._disk.remove(part)
                return False
            seal_file(part, payload, purpose="coordinator.payload", disk=self._disk)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _refused(part, error) from error
        return True

    def reopen(self, update_id: bytes, end: int) -> bool:
        """Turn a payload back into a part, durably: ``finish`` was not followed by its accepting commit, and
        what that would have recorded comes again. False if there is none that reaches byte ``end``."""
        part, payload = self._part(update_id), self._payload(update_id)
        try:
            if payload.stat().st_size < end:
                return False
            move_file(payload, part, purpose="coordinator.reopened", disk=self._disk)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _refused(payload, error) from error
        return True

    def read(self, update_id: bytes, size: int) -> bytes | None:
        """A payload; None if it is missing or has another size: nothing will bring it back."""
        path = self._payload(update_id)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, error) from error
        return content if len(content) == size else None

    def discard(self, update_ids: Iterable[bytes]) -> None:
        """Remove parts and payloads, where they are there."""
        for update_id in update_ids:
            self._disk.remove(self._part(update_id))
            self._disk.remove(self._payload(update_id))

    def sweep(self, *, parts: Iterable[bytes], payloads: Iterable[bytes]) -> int:
        """Remove every file that belongs to none of these update ids; how many.

        Only at the start, before anything is received: a payload whose accepting commit did not come is
        sent again by its device.
        """
        swept = 0
        for folder, keep in ((self._parts, set(parts)), (self._payloads, set(payloads))):
            names = {update_id.hex() for update_id in keep}
            for path in folder.glob("*"):
                if path.name not in names:
                    self._disk.remove(path)
                    swept += 1
        return swept

    def _part(self, update_id: bytes) -> Path:
        return self._parts / update_id.hex()

    def _payload(self, update_id: bytes) -> Path:
        return self._payloads / update_id.hex()


def _is(path: Path, size: int, sha256: bytes) -> bool:
    digest = hashlib.sha256()
    length = 0
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
            length += len(block)
    return length == size and digest.digest() == sha256


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: {error.strerror or error}",
        hint="free some space, or check that the state folder is writable by this user",
    )
