"""The disk as durable code sees it: few operations, each of which a power cut may undo until it is synced.

``write_file`` is the one way in which Lichen writes a durable file, ``make_folder`` the one in which it
makes a folder for them. Both go through a ``Disk``, so that a test can run the same code on a disk that
forgets what was not synced.
"""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Protocol

from fl_protocol.errors import StorageError

__all__ = ["DISK", "Disk", "RealDisk", "make_folder", "sweep_unfinished", "write_file"]

_HINT = "free some space, or check that the folder is writable by this user"


class Disk(Protocol):
    """Write, sync, rename, remove. Only what was synced survives a power cut."""

    def write(self, path: Path, content: bytes, *, mode: int = 0o666) -> None:
        """Create or replace a file; not durable before ``sync``. A new file's rights are ``mode`` less the
        umask."""
        ...

    def write_at(self, path: Path, offset: int, content: bytes) -> None:
        """Write into a file at a byte offset, creating it; not durable before ``sync``."""
        ...

    def sync(self, path: Path) -> None:
        """Make a file's content durable."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Replace ``new`` by ``old`` in one step; durable after ``sync_directory`` of its folder."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Make the names in a folder durable."""
        ...


class RealDisk:
    """The operating system's files."""

    def write(self, path: Path, content: bytes, *, mode: int = 0o666) -> None:
        """Create or replace a file."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)

    def write_at(self, path: Path, offset: int, content: bytes) -> None:
        """Write at an offset."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            view = memoryview(content)
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(descriptor)

    def sync(self, path: Path) -> None:
        """fsync a file."""
        _fsync(path, os.O_RDONLY)

    def rename(self, old: Path, new: Path) -> None:
        """Rename in one step."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Unlink."""
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        """fsync a folder."""
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


DISK = RealDisk()


def write_file(path: Path, content: bytes, *, disk: Disk = DISK, mode: int = 0o666) -> None:
    """Write a durable file: temporary name, fsync, rename, fsync of the folder.

    After a crash at any moment the file is the old one or the new one, whole. On return it is the new.
    ``mode`` (less the umask) holds from the first byte on: 0o600 for a key.

    Raises:
        StorageError: the disk is full, read-only or failing; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        disk.write(temporary, content, mode=mode)
        disk.sync(temporary)
        disk.rename(temporary, path)
        disk.sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise StorageError(f"cannot write {path}: {error.strerror or error}", hint=_HINT) from error


def make_folder(path: Path, *, disk: Disk = DISK) -> None:
    """Make a folder, and those above it, durably: a file is lost with the name of the folder it is in.

    Raises:
        StorageError: the disk refuses, or something else has that name.
    """
    path = path.absolute()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            disk.sync_directory(folder.parent)
        if not missing:
            # A crash may have come between its making and the sync. Where we may not read the folder
            # above (a service's state folder), somebody else has made it.
            with contextlib.suppress(PermissionError):
                disk.sync_directory(path.parent)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error.strerror or error}", hint=_HINT) from error


def sweep_unfinished(folder: Path, *, disk: Disk = DISK) -> int:
    """Remove what crashes inside ``write_file`` have left in a folder; how many files. Only where nobody
    is writing."""
    left = list(folder.glob(".*.????????.tmp"))
    for path in left:
        disk.remove(path)
    return len(left)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
