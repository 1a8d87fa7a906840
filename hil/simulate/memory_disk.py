"""A disk in memory: what one virtual device keeps. Contents that many devices have are held once."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["Contents", "MemoryDisk"]


_NO_SUCH_FILE = os.strerror(errno.ENOENT)


class Contents:
    """File contents, and rows of names, that several disks hold as one object, the newest few hundred;
    and the contents' hashes."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._kept: dict[bytes, bytes] = {}
        self._digests: dict[int, bytes] = {}
        self._rows: dict[tuple[str, ...], tuple[str, ...]] = {}

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

    def row(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The same names, as the object that the others have."""
        kept = self._rows.setdefault(names, names)
        if kept is names and len(self._rows) > self._most:
            del self._rows[next(iter(self._rows))]
        return kept

    def sha256(self, content: bytes) -> bytes:
        """Its digest, known for those that are kept."""
        return self._digests.get(id(content)) or hashlib.sha256(content).digest()


class MemoryDisk:
    """The disk of one device, see ``fl_io.disk.Disk``. It forgets nothing, and nothing on it is durable.

    Folders exist by being made; a name's age is the order in which it was written. There are few names, and
    devices have the same ones: a disk is a row of names that is held once for all who have it, and what
    is under each of them; under a folder's is nothing.
    """

    __slots__ = ("_contents", "_held", "_names", "syncs")

    def __init__(self, contents: Contents) -> None:
        self.syncs = 0
        self._contents = contents
        self._names: tuple[str, ...] = ()
        self._held: tuple[bytes | None, ...] = ()

    def write(self, path: Path, content: bytes, *, mode: int = 0o666) -> None:
        """Create or replace a file."""
        self._put(str(path), self._contents.shared(content))

    def write_at(self, path: Path, offset: int, content: bytes) -> None:
        """Write at an offset."""
        name = str(path)
        held = self._find(name) or b""
        if len(held) < offset:
            held += bytes(offset - len(held))
        self._put(name, held[:offset] + content + held[offset + len(content) :])

    def sync(self, path: Path) -> None:
        """Count it; a file is whole now, as a rule, and may be shared."""
        self.syncs += 1
        content = self._content(path)
        shared = self._contents.shared(content)
        if shared is not content:
            at = self._names.index(str(path))
            self._held = (*self._held[:at], shared, *self._held[at + 1 :])

    def rename(self, old: Path, new: Path) -> None:
        """Rename in one step."""
        content = self._content(old)
        self._take_out(str(old))
        self._put(str(new), content)

    def remove(self, path: Path) -> None:
        """Forget a file."""
        if self._find(str(path)) is not None:
            self._take_out(str(path))

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
        return str(path) in self._names or len(path.parts) == 1

    def is_folder(self, path: Path) -> bool:
        """A folder that was made."""
        name = str(path)
        return name in self._names and self._find(name) is None

    def names(self, folder: Path) -> list[str]:
        """The newest first, folders last."""
        if not self._names:
            return []
        prefix = f"{folder}/"
        start = len(prefix)
        files: list[str] = []
        folders: list[str] = []
        for name, content in zip(self._names, self._held, strict=True):
            if name.startswith(prefix) and "/" not in name[start:]:
                (folders if content is None else files).append(name[start:])
        return [*reversed(files), *reversed(folders)]

    def add_folder(self, path: Path, *, mode: int = 0o777) -> None:
        """Folders above it need not be made."""
        if str(path) not in self._names:
            self._put(str(path), None)

    def remove_folder(self, path: Path) -> None:
        """Forget it and what is in it."""
        prefix = f"{path}/"
        for name in [name for name in self._names if name == str(path) or name.startswith(prefix)]:
            self._take_out(name)

    def lock(self, path: Path, note: bytes) -> Callable[[], None]:
        """Nobody else can reach it."""
        return _nothing

    def _put(self, name: str, content: bytes | None) -> None:
        """Have this under that name, as the newest."""
        if name in self._names:
            self._take_out(name)
        self._names, self._held = self._contents.row((*self._names, name)), (*self._held, content)

    def _take_out(self, name: str) -> None:
        names, held = self._names, self._held
        at = names.index(name)
        self._names, self._held = names[:at] + names[at + 1 :], held[:at] + held[at + 1 :]

    def _find(self, name: str) -> bytes | None:
        return self._held[self._names.index(name)] if name in self._names else None

    def _content(self, path: Path) -> bytes:
        name = str(path)
        if name in self._names:
            content = self._held[self._names.index(name)]
            if content is not None:
                return content
        raise FileNotFoundError(errno.ENOENT, _NO_SUCH_FILE, name)


def _nothing() -> None:
    pass
