"""Backup: a consistent copy of a coordinator's state while it runs.

The copy holds the private signing key: keep it as you keep the original. A coordinator that is restored
from it recognises by its devices that time has gone on, and waits for ``lichen coordinator recover``. Its
terms begin far above those of the original, so that devices obey it, and the original gives way.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.keys import check_key
from broker_coordinator.storage.sqlite_database import DATABASE_NAME
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_io.disk import DISK, Disk, seal_file, write_file
from fl_protocol.errors import StorageError

__all__ = ["Backup", "back_up"]

_KEYS = ("coordinator.key", "coordinator.pub", "task.manifest")
_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What was copied: ``version`` is the newest one's number, None before the first."""

    path: Path
    version: int | None
    files: int
    bytes: int


class _Moved(Exception):
    """Retention removed a file between the copy of the database and its own."""


def back_up(folder: Path, out: Path, *, disk: Disk = DISK) -> Backup:
    """Copy the state in ``folder`` into the new or empty folder ``out``.

    The database is copied first and put in place last: a backup that broke off does not open.

    Raises:
        ConfigError: the key is damaged.
        StorageError: ``out`` is not empty, a file is missing or damaged, or a disk refuses.
    """
    # Who makes a backup wants to be able to go back to it.
    check_key(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out} is not an empty folder", hint="name a new folder for each backup")
    out.mkdir(parents=True, exist_ok=True)
    for _ in range(_TRIES):
        try:
            return _copy(folder, out, disk)
        except _Moved as moved:
            missing = str(moved)
    raise StorageError(f"{missing} is missing from {folder}", hint="`lichen audit` tells what is left")


def _copy(folder: Path, out: Path, disk: Disk) -> Backup:
    part = out / ".part"
    part.mkdir(exist_ok=True)
    database = part / DATABASE_NAME
    store = SqliteStore.open(folder, read_only=True)
    try:
        database.unlink(missing_ok=True)
        store.copy_to(database)
    finally:
        store.close()
    version, names = _needed(folder, part)
    copied = [_copy_file(folder / name, out / name, disk) for name in names]
    copied += _copy_blobs(folder, out, disk)
    size = database.stat().st_size
    seal_file(database, out / DATABASE_NAME, purpose="backup.database", disk=disk)
    part.rmdir()
    disk.sync_directory(out.parent)
    return Backup(path=out, version=version, files=len(copied) + 1, bytes=sum(copied) + size)


def _needed(folder: Path, copy: Path) -> tuple[int | None, list[str]]:
    """The newest version of the copied database, and the files it depends on."""
    store = SqliteStore.open(copy, read_only=True)
    try:
        anchor = store.office().anchor
        versions = [version for version in store.versions() if version.number >= anchor]
        names = [f"versions/{version.epoch}-{version.number}.state" for version in versions]
        names += [f"payloads/{update_id.hex()}" for update_id in store.payload_files()]
    finally:
        store.close()
    names += [name for name in _KEYS if (folder / name).exists()]
    return (versions[-1].number if versions else None), names


def _copy_blobs(folder: Path, out: Path, disk: Disk) -> list[int]:
    """Copy what is published. One that goes meanwhile is no loss: a coordinator makes it again."""
    copied = []
    for path in sorted(folder.glob("blobs/" + "?" * 64)):
        with contextlib.suppress(_Moved):
            copied.append(_copy_file(path, out / "blobs" / path.name, disk))
    return copied


def _copy_file(source: Path, copy: Path, disk: Disk) -> int:
    try:
        content = source.read_bytes()
        rights = source.stat().st_mode & 0o777
    except FileNotFoundError:
        raise _Moved(source.name) from None
    except OSError as error:
        raise StorageError(f"cannot read {source}: {error.strerror}") from None
    copy.parent.mkdir(exist_ok=True)
    write_file(copy, content, purpose="backup.file", disk=disk, mode=rights)
    return len(content)
