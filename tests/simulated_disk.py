"""A disk that forgets what was not synced.

kill -9 cannot show a missing fsync: the page cache survives it. This disk works in a real folder and
keeps a second account, of what a power cut would leave. ``crash`` makes the folder look like that.
"""

import errno
import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fl_io.disk import RealDisk


class PowerCut(BaseException):
    """The power went. No code under test catches it."""


@dataclass(slots=True, eq=False)
class _Inode:
    synced: bytes | None = None


@dataclass(slots=True, frozen=True)
class _NameChange:
    """``name`` becomes ``inode`` (``None``: goes away); a rename takes ``old`` away in the same step."""

    name: Path
    inode: _Inode | None
    old: Path | None = None


class SimulatedDisk(RealDisk):
    """A ``fl_io.disk.Disk`` over real files, whose ``crash`` undoes what was not synced.

    The disk may have kept more than it was asked to: how many of the unsynced changes of names survive (in
    their order), and whether unsynced content is the old, empty, cut short or whole, is drawn from
    ``seed``. Files touched only by other means are left alone.

    Operations are named ``sync:3``: the third ``sync`` since the start (also ``write``, ``write_at``,
    ``rename``, ``remove``, ``sync_directory``). Those in ``skip`` do nothing, those in ``fail`` raise
    OSError (no space), and before operation number ``cut`` (of all, from 1) ``PowerCut`` is raised.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        skip: Collection[str] = (),
        fail: Collection[str] = (),
        cut: int | None = None,
    ) -> None:
        self.skip = set(skip)
        self.fail = set(fail)
        self.cut = cut
        self.calls: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._names: dict[Path, _Inode] = {}
        self._durable: dict[Path, _Inode] = {}
        self._changes: list[_NameChange] = []

    @property
    def operations(self) -> int:
        """Operations so far."""
        return sum(self.calls.values())

    def write(self, path: Path, content: bytes, *, mode: int = 0o666) -> None:
        """Create or replace a file."""
        if self._begin("write"):
            self._touch(path)
            super().write(path, content, mode=mode)

    def write_at(self, path: Path, offset: int, content: bytes) -> None:
        """Write at an offset."""
        if self._begin("write_at"):
            self._touch(path)
            super().write_at(path, offset, content)

    def sync(self, path: Path) -> None:
        """Make a file's content durable; its name is another matter."""
        if self._begin("sync"):
            self._adopt(path)
            self._names[path].synced = path.read_bytes()

    def rename(self, old: Path, new: Path) -> None:
        """Rename in one step."""
        if self._begin("rename"):
            self._adopt(old)
            self._adopt(new)
            super().rename(old, new)
            inode = self._names.pop(old)
            self._names[new] = inode
            self._changes.append(_NameChange(new, inode, old))

    def remove(self, path: Path) -> None:
        """Unlink."""
        if self._begin("remove"):
            self._adopt(path)
            super().remove(path)
            if self._names.pop(path, None) is not None:
                self._changes.append(_NameChange(path, None))

    def sync_directory(self, path: Path) -> None:
        """Make the names in a folder durable."""
        if self._begin("sync_directory"):
            for change in [change for change in self._changes if change.name.parent == path]:
                self._apply(change)
                self._changes.remove(change)

    def crash(self) -> None:
        """The power goes and comes back: roll the folder back to what the disk has kept."""
        for change in self._changes[: self._random.choice([0, 0, len(self._changes), self._some()])]:
            self._apply(change)
        contents = {path: self._surviving(inode) for path, inode in self._durable.items()}
        for path in self._names.keys() - contents.keys():
            path.unlink(missing_ok=True)
        for path, content in contents.items():
            path.write_bytes(content)
            self._durable[path].synced = content
        self._names = dict(self._durable)
        self._changes.clear()
        self.cut = None

    def _some(self) -> int:
        return self._random.randint(0, len(self._changes))

    def _begin(self, operation: str) -> bool:
        if self.cut is not None and self.operations + 1 >= self.cut:
            raise PowerCut
        self.calls[operation] += 1
        name = f"{operation}:{self.calls[operation]}"
        if name in self.fail:
            raise OSError(errno.ENOSPC, "No space left on device")
        return name not in self.skip

    def _adopt(self, path: Path) -> None:
        """Take up a file that was there before: it is durable as it stands."""
        if path not in self._names and path.exists():
            self._names[path] = self._durable[path] = _Inode(path.read_bytes())

    def _touch(self, path: Path) -> None:
        self._adopt(path)
        if path not in self._names:
            self._names[path] = _Inode()
            self._changes.append(_NameChange(path, self._names[path]))

    def _apply(self, change: _NameChange) -> None:
        if change.old is not None:
            self._durable.pop(change.old, None)
        if change.inode is None:
            self._durable.pop(change.name, None)
        else:
            self._durable[change.name] = change.inode

    def _surviving(self, inode: _Inode) -> bytes:
        """What is left of a file's content."""
        path = next((path for path, other in self._names.items() if other is inode), None)
        now = path.read_bytes() if path is not None and path.exists() else inode.synced or b""
        if now == inode.synced:
            return now
        cut_short = now[: self._random.randrange(len(now) + 1)]
        return self._random.choice([inode.synced or b"", b"", cut_short, now])
