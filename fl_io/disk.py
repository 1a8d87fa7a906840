"""The disk as durable code sees it: few operations, each of which a power cut may undo until it is synced.

``write_file`` is the one way in which Lichen writes a durable file (``seal_file`` where it was written in
pieces, ``move_file`` where it is durable already), ``make_folder`` the one in which it makes a folder for
them. All go through a ``Disk``, so that a test can run the same code on a disk that forgets what was not
synced. ``purpose`` says what the file is for, and begins the names of the crash points on the way.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from fl_io.crash import crash_point
from fl_protocol.errors import StorageError

__all__ = [
    "DISK",
    "Disk",
    "RealDisk",
    "make_folder",
    "move_file",
    "seal_file",
    "sweep_unfinished",
    "write_file",
]

_HINT = "free some space, or check that the folder is writable by this user"


class Disk(Protocol):
    """Write, sync, rename, remove, and read back. Only what was synced survives a power cut.

    ``syncs`` counts what wears a memory card out most: fsyncs, of files and of folders.
    """

    syncs: int

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

    def read(self, path: Path, start: int = 0, size: int = -1) -> bytes:
        """Bytes from ``start`` on, at most ``size`` of them (-1: all)."""
        ...

    def sha256(self, path: Path) -> bytes:
        """The digest of a file's content."""
        ...

    def size(self, path: Path) -> int:
        """Bytes in a file."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether there is a file or a folder."""
        ...

    def is_folder(self, path: Path) -> bool:
        """Whether there is a folder."""
        ...

    def names(self, folder: Path) -> list[str]:
        """What is in a folder, what was written last first."""
        ...

    def add_folder(self, path: Path, *, mode: int = 0o777) -> None:
        """Make a folder, and those above it, where they are not; not durable by itself (``make_folder``)."""
        ...

    def remove_folder(self, path: Path) -> None:
        """Remove a folder and what is in it, as far as that goes."""
        ...

    def lock(self, path: Path, note: bytes) -> Callable[[], None]:
        """Hold a file alone, made if need be, until what is returned is called; ``note`` is written into it,
        if that is possible, for whoever is refused.

        Raises:
            BlockingIOError: another process holds it.
        """
        ...


class RealDisk:
    """The operating system's files."""

    syncs = 0

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
        self.syncs += 1
        _fsync(path, os.O_RDONLY)

    def rename(self, old: Path, new: Path) -> None:
        """Rename in one step."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Unlink."""
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        """fsync a folder."""
        self.syncs += 1
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)

    def read(self, path: Path, start: int = 0, size: int = -1) -> bytes:
        """Read a file, or a part of it."""
        with path.open("rb") as stream:
            if start:
                stream.seek(start)
            return stream.read(size)

    def sha256(self, path: Path) -> bytes:
        """Hash a file piece by piece."""
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    def size(self, path: Path) -> int:
        """As the file system says."""
        return path.stat().st_size

    def exists(self, path: Path) -> bool:
        """Whether the name is there."""
        return path.exists()

    def is_folder(self, path: Path) -> bool:
        """Whether it is a directory."""
        return path.is_dir()

    def names(self, folder: Path) -> list[str]:
        """The newest first."""
        with os.scandir(folder) as entries:
            found = [(entry.stat().st_mtime_ns, entry.name) for entry in entries]
        return [name for _, name in sorted(found, key=lambda entry: entry[0], reverse=True)]

    def add_folder(self, path: Path, *, mode: int = 0o777) -> None:
        """mkdir -p."""
        path.mkdir(mode=mode, parents=True, exist_ok=True)

    def remove_folder(self, path: Path) -> None:
        """rm -r."""
        shutil.rmtree(path, ignore_errors=True)

    def lock(self, path: Path, note: bytes) -> Callable[[], None]:
        """flock."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        # A full disk must not keep the holder from its work.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note, 0)
        return lambda: os.close(descriptor)


DISK = RealDisk()


def write_file(
    path: Path,
    content: bytes,
    *,
    purpose: str,
    disk: Disk = DISK,
    mode: int = 0o666,
    name_at_once: bool = True,
) -> None:
    """Write a durable file: temporary name, fsync, rename, fsync of the folder.

    After a crash at any moment the file is the old one or the new one, whole. On return it is the new.
    ``mode`` (less the umask) holds from the first byte on: 0o600 for a key. ``name_at_once`` False leaves
    the last fsync out, for what costs little to make again: then it may be the old one still.

    Raises:
        StorageError: the disk is full, read-only or failing; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        disk.write(temporary, content, mode=mode)
        seal_file(temporary, path, purpose=purpose, disk=disk, name_at_once=name_at_once)
    except OSError as error:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise StorageError(f"cannot write {path}: {error.strerror or error}", hint=_HINT) from error


def seal_file(part: Path, path: Path, *, purpose: str, disk: Disk = DISK, name_at_once: bool = True) -> None:
    """Give a file that is written its name: fsync, rename, fsync of the folder, as ``write_file`` does.

    Raises:
        OSError: the disk refuses; ``path`` is the old file, or the new one.
    """
    crash_point(f"{purpose}.written")
    disk.sync(part)
    crash_point(f"{purpose}.synced")
    disk.rename(part, path)
    crash_point(f"{purpose}.renamed")
    if name_at_once:
        disk.sync_directory(path.parent)
    crash_point(f"{purpose}.durable")


def move_file(old: Path, new: Path, *, purpose: str, disk: Disk = DISK) -> None:
    """Rename a durable file, durably.

    Raises:
        OSError: the disk refuses; after a crash it has one of the two names.
    """
    crash_point(f"{purpose}.move")
    disk.rename(old, new)
    crash_point(f"{purpose}.moved")
    disk.sync_directory(new.parent)
    crash_point(f"{purpose}.settled")


def make_folder(path: Path, *, purpose: str, disk: Disk = DISK, mode: int = 0o777) -> None:
    """Make a folder, and those above it, durably: a file is lost with the name of the folder it is in.
    ``mode`` (less the umask) is that of the folder itself, if it is made.

    Raises:
        StorageError: the disk refuses, or something else has that name.
    """
    path = path.absolute()
    missing = [folder for folder in (path, *path.parents) if not disk.exists(folder)]
    try:
        disk.add_folder(path, mode=mode)
        crash_point(f"{purpose}.made")
        for folder in reversed(missing):
            disk.sync_directory(folder.parent)
        if not missing:
            # A crash may have come between its making and the sync. Where we may not read the folder
            # above (a service's state folder), somebody else has made it.
            with contextlib.suppress(PermissionError):
                disk.sync_directory(path.parent)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}: {error.strerror or error}", hint=_HINT) from error
    crash_point(f"{purpose}.kept")


def sweep_unfinished(folder: Path, *, disk: Disk = DISK) -> int:
    """Remove what crashes inside ``write_file`` have left in a folder; how many files. Only where nobody
    is writing."""
    names = disk.names(folder) if disk.is_folder(folder) else []
    left = [folder / name for name in names if fnmatch(name, ".*.????????.tmp")]
    for path in left:
        disk.remove(path)
    return len(left)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
