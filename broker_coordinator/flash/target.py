"""What a card is written to: a device such as /dev/sdX, in use by nobody, or a file that appears whole."""

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_io.disk import seal_file
from fl_protocol.errors import StorageError

__all__ = ["BlockDevice", "CardTarget", "System", "inspect_target", "open_target"]

_FLUSH_BUFFERS = 0x1261
"""BLKFLSBUF: forget what is cached of a device, so that reading it reads the card. Root's alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """A device, as the kernel describes it: ``size`` in bytes, ``name`` without /dev."""

    name: str
    size: int
    model: str = ""
    removable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """Where the kernel says what its devices are used for."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")

    def block_device(self, number: str, path: Path) -> BlockDevice:
        """The whole, unused disk that has this ``major:minor``.

        Raises:
            StorageError: it is a partition, in use, read-only or empty; the message says which.
        """
        folder = (self.sys / "dev" / "block" / number).resolve()
        if not folder.is_dir():
            raise StorageError(f"{path} is not a disk that the kernel knows")
        if (folder / "partition").exists():
            raise StorageError(
                f"{path} is a partition", hint=f"a whole card is written: /dev/{folder.parent.name}"
            )
        parts = [folder, *(child for child in sorted(folder.iterdir()) if (child / "partition").exists())]
        numbers = {_text(part / "dev"): part.name for part in parts}
        self._refuse_mounted(path, numbers)
        self._refuse_swap(path, {part.name for part in parts})
        for part in parts:
            holders = part / "holders"
            used = sorted(holder.name for holder in holders.iterdir()) if holders.is_dir() else []
            if used:
                raise StorageError(
                    f"{path} is in use: {part.name} belongs to {', '.join(used)}",
                    hint="that is RAID, LVM or encryption of a system: is this really the card?",
                )
        if _text(folder / "ro") == "1":
            raise StorageError(f"{path} is read-only", hint="slide the card's lock, or take another reader")
        size = int(_text(folder / "size") or 0) * 512
        if size == 0:
            raise StorageError(f"{path} has no card in it", hint="put one in")
        return BlockDevice(
            name=folder.name,
            size=size,
            model=_text(folder / "device" / "model") or _text(folder / "device" / "name"),
            removable=_text(folder / "removable") == "1" or folder.name.startswith("mmcblk"),
        )

    def _refuse_mounted(self, path: Path, numbers: dict[str, str]) -> None:
        mounted: list[tuple[str, str]] = []
        for line in _lines(self.proc / "self" / "mountinfo"):
            fields = line.split()
            source = fields[fields.index("-") + 2] if "-" in fields else ""
            # btrfs has numbers of its own, hence the source's name too.
            name = numbers.get(fields[2]) or (
                source[5:] if source.startswith("/dev/") and source[5:] in numbers.values() else None
            )
            if name is not None:
                mounted.append((name, _unescaped(fields[4])))
        system = [at for _, at in mounted if at == "/" or at.startswith(("/boot", "/usr", "/var", "/home"))]
        if system:
            raise StorageError(
                f"{path} is the disk of this system: {system[0]} is on it",
                hint="lsblk shows which is the card",
            )
        if mounted:
            name, at = mounted[0]
            raise StorageError(f"{path} is mounted: {name} at {at}", hint=f"umount {at}")

    def _refuse_swap(self, path: Path, names: set[str]) -> None:
        for line in _lines(self.proc / "swaps")[1:]:
            source = line.split()[0]
            if source.startswith("/dev/") and source[5:] in names:
                raise StorageError(f"{path} is the disk of this system: it swaps to {source}")


class CardTarget:
    """An open card of ``size`` bytes, None where it grows. Its first bytes are written last: one that was
    not finished has no partition table, and a file that was not has not its name."""

    def __init__(self, descriptor: int, *, path: Path, part: Path | None, device: BlockDevice | None) -> None:
        self._descriptor = descriptor
        self._part = part
        self.path = path
        self.device = device

    @property
    def size(self) -> int | None:
        """Bytes it has room for."""
        return self.device.size if self.device is not None else None

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that are there."""
        return os.pread(self._descriptor, length, offset)

    def write(self, offset: int, content: bytes) -> None:
        """Write there. Zeros are left out of a file: it is sparse."""
        with self._faults():
            if self._part is not None and not content.strip(b"\0"):
                end = offset + len(content)
                if os.fstat(self._descriptor).st_size < end:
                    os.ftruncate(self._descriptor, end)
                    return
            view = memoryview(content)
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    def sync(self) -> None:
        """What was written is on the card, and read from there next time."""
        with self._faults():
            os.fsync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if self.device is not None:
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._descriptor, _FLUSH_BUFFERS)

    def finish(self) -> None:
        """It is whole: a file gets its name."""
        with self._faults():
            if self._part is not None:
                seal_file(self._part, self.path, purpose="flash.card")
                self._part = None

    def close(self) -> None:
        """Close it; a file that is not finished is removed."""
        os.close(self._descriptor)
        if self._part is not None:
            self._part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "free some space" if error.errno == errno.ENOSPC else "try another card or reader"
            raise StorageError(f"cannot write {self.path}: {error.strerror}", hint=hint) from None


@contextlib.contextmanager
def open_target(path: Path, *, replace: bool = False, system: System | None = None) -> Iterator[CardTarget]:
    """A card to be written. ``replace`` allows for a file that exists.

    Raises:
        StorageError: it must not, or cannot, be written; the message says why.
    """
    device = inspect_target(path, replace=replace, system=system)
    part = None if device is not None else path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # Of a device O_EXCL asks the kernel itself: it refuses one that is mounted or held, even since we looked.
    if part is not None:
        for left in path.absolute().parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
            left.unlink(missing_ok=True)  # of one that was killed
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_EXCL | (os.O_CREAT if part is not None else 0)
    try:
        descriptor = os.open(part or path, flags, 0o600)
    except OSError as error:
        hint = {
            errno.EBUSY: "something uses it: umount it",
            errno.EACCES: "run as root, or as a member of the group that owns it (disk)",
        }
        raise StorageError(
            f"cannot open {path}: {error.strerror}", hint=hint.get(error.errno or 0, "")
        ) from None
    target = CardTarget(descriptor, path=path, part=part, device=device)
    try:
        yield target
    finally:
        target.close()


def inspect_target(path: Path, *, replace: bool = False, system: System | None = None) -> BlockDevice | None:
    """The device behind a path, None for a file; nothing is opened. Raises as ``open_target`` does."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    except OSError as error:
        raise StorageError(f"cannot look at {path}: {error.strerror}") from None
    if status is None:
        absolute = path.absolute()
        if absolute.is_relative_to("/dev") and not absolute.is_relative_to("/dev/shm"):
            raise StorageError(f"there is no {path}", hint="lsblk shows the card's name")
        if not path.absolute().parent.is_dir():
            raise StorageError(f"there is no folder {path.absolute().parent}")
        return None
    if stat.S_ISBLK(status.st_mode):
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        return (system or System()).block_device(number, path)
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{path} is neither a file nor a disk")
    if not replace:
        raise StorageError(f"{path} exists", hint="name another file, or give --replace")
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _lines(path: Path) -> Sequence[str]:
    return _text(path).splitlines()


def _unescaped(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
