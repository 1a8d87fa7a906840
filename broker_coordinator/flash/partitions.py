"""The partition table of a disk image: MBR, or GPT with its checksums.

UEFI Specification 2.10, section 5. Sectors are 512 bytes, as on every memory card.
"""

import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from fl_protocol.errors import ConfigError

__all__ = ["SECTOR", "Partition", "PartitionTable", "ReadAt", "read_partitions"]

SECTOR = 512
MAX_ENTRIES = 1024

ReadAt: TypeAlias = Callable[[int, int], bytes]
"""``read(offset, length)``: bytes, fewer than asked for only where the image ends."""

_MBR_KINDS = {
    0x01: "FAT12",
    0x04: "FAT16",
    0x06: "FAT16",
    0x07: "NTFS or exFAT",
    0x0B: "FAT32",
    0x0C: "FAT32",
    0x0E: "FAT16",
    0x82: "Linux swap",
    0x83: "Linux",
    0xEF: "EFI system",
}
_GPT_KINDS = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "basic data",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux",
}
_MAGIC = (
    (0, b"PK\x03\x04", "a zip archive: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it first"),
    (0, b"BZh", "compressed by bzip2: unpack it first"),
    (0, b"\x7fELF", "a program"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"QFI\xfb", "a qcow2 image: qemu-img convert -O raw makes a raw one"),
    (0x438, b"\x53\xef", "an ext file system without a partition table"),
    (0x8001, b"CD001", "a CD image"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One entry; ``start`` and ``size`` in bytes, ``kind`` for people to read."""

    number: int
    start: int
    size: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTable:
    """``scheme`` is ``MBR`` or ``GPT``; partitions in the table's order."""

    scheme: str
    partitions: tuple[Partition, ...]

    @property
    def end(self) -> int:
        """First byte behind all of them: no smaller card will do."""
        return max(partition.start + partition.size for partition in self.partitions)


def read_partitions(read: ReadAt) -> PartitionTable:
    """The table of an image.

    Raises:
        ConfigError: there is none, or it is damaged; the message names what is there.
    """
    sector = read(0, SECTOR)
    if len(sector) < SECTOR:
        raise ConfigError(f"{len(sector)} bytes are no disk image")
    if sector[510:] != b"\x55\xaa":
        raise ConfigError(f"the image has no partition table: it is {_guess(read)}")
    if sector[450] == 0xEE or any(sector[446 + 16 * i + 4] == 0xEE for i in range(4)):
        partitions = _gpt(read)
        scheme = "GPT"
    else:
        partitions = _mbr(sector)
        scheme = "MBR"
    if not partitions:
        raise ConfigError(f"the image's partition table ({scheme}) is empty: it is {_guess(read)}")
    return PartitionTable(scheme=scheme, partitions=partitions)


def _guess(read: ReadAt) -> str:
    for offset, magic, meaning in _MAGIC:
        if read(offset, len(magic)) == magic:
            return meaning
    return "none that is known here"


def _mbr(sector: bytes) -> tuple[Partition, ...]:
    found = []
    for number in range(1, 5):
        status, kind, start, count = struct.unpack_from("<B3xB3xII", sector, 446 + 16 * (number - 1))
        if kind == 0 and count == 0:
            continue
        if status not in (0, 0x80) or start == 0 or count == 0:
            raise ConfigError(
                "the image's first sector holds no partition table"
                " (a lone file system, or damaged): an image of a whole card is needed"
            )
        found.append(
            Partition(
                number=number,
                start=start * SECTOR,
                size=count * SECTOR,
                kind=f"{_MBR_KINDS.get(kind, 'unknown')} (type {kind:02x})",
            )
        )
    return tuple(found)


def _gpt(read: ReadAt) -> tuple[Partition, ...]:
    header = read(SECTOR, SECTOR)
    if len(header) < SECTOR or header[:8] != b"EFI PART":
        raise ConfigError("the image's GPT is missing: only its protective MBR is there")
    length, checksum = struct.unpack_from("<II", header, 12)
    entries_at, count, entry_size, entries_checksum = struct.unpack_from("<QIII", header, 72)
    if not 92 <= length <= SECTOR or _crc(header[:16] + bytes(4) + header[20:length]) != checksum:
        raise ConfigError("the image's GPT is damaged: its header's checksum is wrong")
    if not (1 <= count <= MAX_ENTRIES and 128 <= entry_size <= 4096 and entry_size % 8 == 0):
        raise ConfigError(f"the image's GPT is not usable: {count} entries of {entry_size} bytes")
    table = read(entries_at * SECTOR, count * entry_size) if entries_at < 2**40 else b""
    if len(table) != count * entry_size or _crc(table) != entries_checksum:
        raise ConfigError("the image's GPT is damaged: its entries' checksum is wrong")
    found = []
    for index in range(count):
        kind, first, last = struct.unpack_from("<16s16xQQ", table, index * entry_size)
        if kind == bytes(16):
            continue
        if not 0 < first <= last < 2**54:
            raise ConfigError(f"the image's GPT is damaged: partition {index + 1} ends before it begins")
        name = str(uuid.UUID(bytes_le=kind))
        found.append(
            Partition(
                number=index + 1,
                start=first * SECTOR,
                size=(last - first + 1) * SECTOR,
                kind=_GPT_KINDS.get(name, f"type {name}"),
            )
        )
    return tuple(found)


def _crc(content: bytes) -> int:
    return zlib.crc32(content) & 0xFFFFFFFF
