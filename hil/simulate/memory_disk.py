"""A disk in memory: what one virtual device keeps. Contents that many devices have are held once."""

import errno
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["Contents", "MemoryDisk"]


class Contents:
    """File contents that several disks hold as one object, the newest few hundred, and their hashes."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._kept: dict[bytes, bytes] = {}
        self._digests: dict[int, bytes] = {}

    def shared(self, content: bytes) -> bytes:
        """The same content, as the object that the others have."""
        if id(content) in self._digests:  # only kept objects are in there, so that no other has their id
            return content
        digest = hashlib.sha256(content).digest()
        kept = self._kept.setdefault(digest, content)
        if kept is content:
            self._digests[id(kept)] = digest
            if len(self._kept) > self._most:
                oldest = self._kept.pop(next(iter(self._kept)))
                del self._digests[id(oldest)]
        return kept

    def sha256(self, content: bytes) -> bytes:
        """Its digest, known for those that are kept."""
        return self._digests.get(id(content)) or hashlib.sha256(content).digest()


class MemoryDisk:
    """The disk of one device, see ``fl_io.disk.Disk``. It forgets nothing, and nothing on it is durable.

    Folders exist by being made; a name's age is the order in which it was written.
    """

    __slots__ = ("_contents", "_files", "_folders", "syncs")

    def __init__(self, contents: Contents) -> None:
        self.syncs = 0
        self._contents = contents
        self._files: dict[str, bytes] = {}
        self._folders: dict[str, None] = {}

    def write(self, path: Path, content: bytes, *, mode: int = 0o666) -> None:
        """Create or replace a file."""
        # Devices have files of the same names: each name is held once.
        name = sys.intern(str(path))
        self._files.pop(name, None)
        self._files[name] = self._contents.shared(content)

    def write_at(self, path: Path, offset: int, content: bytes) -> None:
        """Write at an offset."""
        name = sys.intern(str(path))
        held = self._files.pop(name, b"")
        if len(held) < offset:
            held += bytes(offset - len(held))
        self._files[name] = held[:offset] + content + held[offset + len(content) :]

    def sync(self, path: Path) -> None:
        """Count it; a file is whole now, as a rule, and may be shared."""
        self.syncs += 1
        name = str(path)
        self._files[name] = self._contents.shared(self._files[name])

    def rename(self, old: Path, new: Path) -> None:
        """Rename in one step."""
        content = self._files.pop(str(old), None)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(old))
        name = sys.intern(str(new))
        self._files.pop(name, None)
        self._files[name] = content

    def remove(self, path: Path) -> None:
        """Forget a file."""
        self._files.pop(str(path), None)

    def sync_directory(self, path: Path) -> None:
        """Count it."""
        self.syncs += 1

    def read(self, path: Path, start: int = 0, size: int = -1) -> bytes:
        """Read a file, or a part of it."""
        content = self._content(path)
        if not start and (size < 0 or size >= len(content)):
            return content
        return content[start:] if size < 0 else content[start : start + size]

    def sha256(self, path: Path) -> bytes:
        """Of a shared content it is known."""
        return self._contents.sha256(self._content(path))

    def size(self, path: Path) -> int:
        """Bytes."""
        return len(self._content(path))

    def exists(self, path: Path) -> bool:
        """A file or a folder."""
        return str(path) in self._files or str(path) in self._folders or len(path.parts) == 1

    def is_folder(self, path: Path) -> bool:
        """A folder that was made."""
        return str(path) in self._folders

    def names(self, folder: Path) -> list[str]:
        """The newest first, folders last."""
        prefix = f"{folder}/"
        start = len(prefix)
        inside = [name[start:] for name in (*self._folders, *self._files) if name.startswith(prefix)]
        return [name for name in reversed(inside) if "/" not in name]

    def add_folder(self, path: Path, *, mode: int = 0o777) -> None:
        """Folders above it need not be made."""
        self._folders[sys.intern(str(path))] = None

    def remove_folder(self, path: Path) -> None:
        """Forget it and what is in it."""
        prefix = f"{path}/"
        for name in [name for name in self._folders if name == str(path) or name.startswith(prefix)]:
            del self._folders[name]
        for name in [name for name in self._files if name.startswith(prefix)]:
            del self._files[name]

    def lock(self, path: Path, note: bytes) -> Callable[[], None]:
        """Nobody else can reach it."""
        return _nothing

    def _content(self, path: Path) -> bytes:
        try:
            return self._files[str(path)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None


def _nothing() -> None:
    pass
