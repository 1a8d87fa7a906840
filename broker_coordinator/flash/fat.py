"""A FAT16 or FAT32 volume: reads files, and writes them, without mounting anything.

Microsoft: FAT File System Specification 1.03 (2000); which of the two it is, is told as Linux tells it, by
the 16-bit length of the FAT, since small FAT32 volumes are common on cards.
"""

import datetime
import struct
from array import array
from collections.abc import Sequence

from broker_coordinator.flash.fat_directory import (
    ARCHIVE,
    ENTRY,
    FOLDER,
    DirectoryEntry,
    dot_entries,
    entries,
    new_entries,
    patched,
)
from broker_coordinator.flash.overlay import Overlay
from fl_protocol.errors import ConfigError, StorageError

__all__ = ["FatVolume"]

MAX_FAT_BYTES = 64 << 20
MAX_DIRECTORY_BYTES = 2 << 20
_END = 0x0FFFFFFF


class FatVolume:
    """The volume at ``start`` of a card. Changes go to the overlay; ``flush`` completes them.

    Raises:
        ConfigError: there is no FAT16 or FAT32 volume there; the message names what is wrong.
    """

    def __init__(self, card: Overlay, start: int, size: int) -> None:
        self._card = card
        self._start = start
        boot = card.read(start, 512)
        if len(boot) < 512 or boot[510:] != b"\x55\xaa":
            raise ConfigError("not a FAT file system: it has no boot sector")
        (sector, per_cluster, reserved, copies, roots, small, length16, large, length32, root) = (
            struct.unpack_from("<HBHBHHxH8xII4xI", boot, 11)
        )
        if sector not in (512, 1024, 2048, 4096) or per_cluster == 0 or per_cluster & (per_cluster - 1):
            raise ConfigError("not a FAT file system: sectors and clusters of impossible sizes")
        self._wide = length16 == 0
        fat_sectors, total = length16 or length32, small or large
        root_sectors = -(-roots * ENTRY // sector)
        lead = reserved + copies * fat_sectors + root_sectors
        if not (reserved and 1 <= copies <= 4 and fat_sectors) or total <= lead or total * sector > size:
            raise ConfigError("not a usable FAT file system: its regions do not fit into the partition")
        self._clusters = min(
            (total - lead) // per_cluster, fat_sectors * sector // (4 if self._wide else 2) - 2
        )
        if self._clusters < 1 or (not self._wide and self._clusters < 4085):
            raise ConfigError("a FAT12 file system, or one without room; FAT16 or FAT32 is needed")
        if fat_sectors * sector > MAX_FAT_BYTES or self._clusters >= 0x0FFFFFF5:
            raise ConfigError("a FAT file system of impossible size")
        self._sector: int = sector
        self._copies: int = copies
        self._cluster_bytes: int = per_cluster * sector
        self._fat_at = start + reserved * sector
        self._fat_bytes = fat_sectors * sector
        self._root_at, self._root_bytes = self._fat_at + copies * self._fat_bytes, roots * ENTRY
        self._data_at: int = start + lead * sector
        self._root: int = root if self._wide else 0
        self._notes_at = start + struct.unpack_from("<H", boot, 48)[0] * sector if self._wide else 0
        self._fat = self._read_fat()
        self._was = array(self._fat.typecode, self._fat)
        self._next = 2

    @property
    def kind(self) -> str:
        """``FAT16`` or ``FAT32``."""
        return "FAT32" if self._wide else "FAT16"

    @property
    def free_bytes(self) -> int:
        """What new files have room for."""
        return self._free() * self._cluster_bytes

    def names(self, folder: str = "") -> tuple[str, ...]:
        """Files and folders in a folder, or in the root; none if there is no such folder."""
        cluster = self._resolve(folder)
        return () if cluster is None else tuple(e.name for e in entries(self._directory(cluster)))

    def read_file(self, path: str, *, limit: int = 1 << 20) -> bytes | None:
        """Content of a file such as ``folder/name``, None if it is not there. Raises StorageError if it is
        longer than ``limit`` or damaged."""
        folder, _, name = path.rpartition("/")
        parent = self._resolve(folder)
        entry = None if parent is None else self._find(parent, name)
        if entry is None or entry.is_folder:
            return None
        if entry.size > limit:
            raise StorageError(
                f"{path} on the image's FAT has {entry.size} bytes, at most {limit} are expected"
            )
        if entry.size == 0:
            return b""
        content = b"".join(self._read_cluster(cluster) for cluster in self._chain(entry.cluster))
        if len(content) < entry.size:
            raise _damaged(f"{path} is cut off")
        return content[: entry.size]

    def write_file(self, path: str, content: bytes, when: datetime.datetime) -> None:
        """Create or replace a file such as ``folder/name``; folders are made if need be.

        Raises:
            StorageError: there is no room, something else has the name, or the volume is damaged.
        """
        *folders, name = path.split("/")
        parent = self._root
        for folder in folders:
            parent = self._folder(parent, folder, when)
        old = self._find(parent, name)
        if old is not None:
            if old.is_folder:
                raise StorageError(f"{path} is a folder on the image's FAT")
            self._release(old.cluster)
        clusters = self._store(content, path)
        first = clusters[0] if clusters else 0
        if old is not None:
            raw = self._directory(parent)[old.offset : old.offset + ENTRY]
            self._write_directory(
                parent, old.offset, patched(raw, cluster=first, size=len(content), when=when)
            )
        else:
            self._add(parent, name, attributes=ARCHIVE, cluster=first, size=len(content), when=when)

    def flush(self) -> None:
        """Bring the tables of clusters, and the count of free ones, up to date."""
        width, per = self._fat.itemsize, self._sector // self._fat.itemsize
        for begin in range(0, len(self._fat), per):
            piece = self._fat[begin : begin + per]
            if piece != self._was[begin : begin + per]:
                for copy in range(self._copies):
                    self._card.write(self._fat_at + copy * self._fat_bytes + begin * width, _little(piece))
        self._was = array(self._fat.typecode, self._fat)
        if self._wide and self._card.read(self._notes_at, 4) == b"RRaA":
            self._card.write(self._notes_at + 488, struct.pack("<II", self._free(), self._next))

    def _read_fat(self) -> "array[int]":
        count = self._clusters + 2
        code = "I" if self._wide else "H"
        raw = self._card.read(self._fat_at, count * (4 if self._wide else 2))
        if len(raw) < count * (4 if self._wide else 2):
            raise ConfigError("not a usable FAT file system: the image ends inside it")
        return array(code, struct.unpack(f"<{count}{code}", raw))

    def _free(self) -> int:
        if not self._wide:
            return self._fat[2:].count(0)
        return sum(1 for value in self._fat[2:] if value & _END == 0)

    def _link(self, cluster: int, target: int) -> None:
        # The upper four bits of FAT32's entries are not ours.
        self._fat[cluster] = self._fat[cluster] & 0xF0000000 | target if self._wide else target & 0xFFFF

    def _chain(self, cluster: int) -> list[int]:
        chain: list[int] = []
        while True:
            if not 2 <= cluster < self._clusters + 2 or len(chain) >= self._clusters:
                raise _damaged("a chain of clusters leads nowhere")
            chain.append(cluster)
            cluster = self._fat[cluster] & _END
            if cluster >= (0x0FFFFFF8 if self._wide else 0xFFF8):
                return chain

    def _release(self, cluster: int) -> None:
        if cluster:
            for each in self._chain(cluster):
                self._link(each, 0)

    def _claim(self, count: int, path: str) -> list[int]:
        free: list[int] = []
        for cluster in range(2, self._clusters + 2):
            if len(free) == count:
                break
            if self._fat[cluster] & _END == 0:
                free.append(cluster)
        if len(free) < count:
            raise StorageError(
                f"the image's FAT has no room for {path}: {count * self._cluster_bytes} bytes are needed,"
                f" {len(free) * self._cluster_bytes} are free",
                hint="take a smaller payload, or an image with a larger boot partition",
            )
        for this, following in zip(free, [*free[1:], _END], strict=False):
            self._link(this, following)
        if free:
            self._next = free[-1]
        return free

    def _at(self, cluster: int) -> int:
        return self._data_at + (cluster - 2) * self._cluster_bytes

    def _read_cluster(self, cluster: int) -> bytes:
        return self._card.read(self._at(cluster), self._cluster_bytes)

    def _store(self, content: bytes, path: str) -> list[int]:
        size = self._cluster_bytes
        clusters = self._claim(-(-len(content) // size), path)
        for index, cluster in enumerate(clusters):
            self._card.write(self._at(cluster), content[index * size : (index + 1) * size].ljust(size, b"\0"))
        return clusters

    def _places(self, directory: int) -> Sequence[tuple[int, int]]:
        if directory == 0:
            return [(self._root_at, self._root_bytes)]
        places = [(self._at(cluster), self._cluster_bytes) for cluster in self._chain(directory)]
        if len(places) * self._cluster_bytes > max(MAX_DIRECTORY_BYTES, self._cluster_bytes):
            raise _damaged("a folder is longer than any can be")
        return places

    def _directory(self, directory: int) -> bytes:
        return b"".join(self._card.read(at, length) for at, length in self._places(directory))

    def _write_directory(self, directory: int, offset: int, content: bytes) -> None:
        for at, length in self._places(directory):
            if offset < length and content:
                taken = min(length - offset, len(content))
                self._card.write(at + offset, content[:taken])
                content, offset = content[taken:], 0
            else:
                offset -= length

    def _find(self, directory: int, name: str) -> DirectoryEntry | None:
        wanted = name.casefold()
        return next((e for e in entries(self._directory(directory)) if e.name.casefold() == wanted), None)

    def _resolve(self, folder: str) -> int | None:
        """First cluster of a folder."""
        cluster = self._root
        for name in folder.split("/") if folder else ():
            found = self._find(cluster, name)
            if found is None or not found.is_folder:
                return None
            cluster = found.cluster
        return cluster

    def _folder(self, parent: int, name: str, when: datetime.datetime) -> int:
        found = self._find(parent, name)
        if found is not None:
            if not found.is_folder:
                raise StorageError(f"{name} on the image's FAT is a file, not a folder")
            return found.cluster
        cluster = self._claim(1, name)[0]
        dots = dot_entries(cluster, 0 if parent == self._root else parent, when)
        self._card.write(self._at(cluster), dots.ljust(self._cluster_bytes, b"\0"))
        self._add(parent, name, attributes=FOLDER, cluster=cluster, size=0, when=when)
        return cluster

    def _add(
        self, directory: int, name: str, *, attributes: int, cluster: int, size: int, when: datetime.datetime
    ) -> None:
        content = self._directory(directory)
        taken = {entry.short for entry in entries(content)}
        raw = new_entries(name, taken, attributes=attributes, cluster=cluster, size=size, when=when)
        offset = _gap(content, len(raw))
        if offset + len(raw) > len(content):
            if directory == 0:
                raise StorageError("the root folder of the image's FAT is full")
            last = self._chain(directory)[-1]
            more = self._claim(-(-(offset + len(raw) - len(content)) // self._cluster_bytes), name)
            self._link(last, more[0])
            for each in more:
                self._card.write(self._at(each), bytes(self._cluster_bytes))
        elif content[offset : offset + 1] == b"\0" or content[offset + len(raw) - ENTRY] == 0:
            # What is behind the end of a folder may be anything: the end moves, and stays one.
            raw += bytes(min(ENTRY, len(content) - offset - len(raw)))
        self._write_directory(directory, offset, raw)


def _gap(directory: bytes, length: int) -> int:
    """Where ``length`` bytes of entries have room: between others, or from the end on."""
    run = 0
    for offset in range(0, len(directory), ENTRY):
        if directory[offset] == 0:
            return offset - run
        run = run + ENTRY if directory[offset] == 0xE5 else 0
        if run == length:
            return offset + ENTRY - run
    return len(directory) - run


def _little(values: "array[int]") -> bytes:
    return struct.pack(f"<{len(values)}{values.typecode}", *values)


def _damaged(what: str) -> StorageError:
    return StorageError(f"the image's FAT is damaged: {what}", hint="download the image anew")
