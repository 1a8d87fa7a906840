"""Directory entries of FAT: 32 bytes each, long names in entries before the short one.

Microsoft: FAT File System Specification 1.03 (2000).
"""

import datetime
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

__all__ = ["ARCHIVE", "ENTRY", "FOLDER", "DirectoryEntry", "dot_entries", "entries", "new_entries", "patched"]

ENTRY = 32
ARCHIVE, FOLDER, VOLUME, LONG = 0x20, 0x10, 0x08, 0x0F
_SHORT = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()-@^_`{}~")
_UNITS = 13
"""UTF-16 units of a long name in one entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryEntry:
    """A file or folder: where its short entry is (byte offset in the directory), its names, its cluster."""

    offset: int
    name: str
    short: bytes
    attributes: int
    cluster: int
    size: int

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return bool(self.attributes & FOLDER)


def entries(directory: bytes) -> Iterator[DirectoryEntry]:
    """Those of a directory, without the volume's label, ``.`` and ``..``."""
    pieces: dict[int, bytes] = {}
    checksum = -1
    for offset in range(0, len(directory) - ENTRY + 1, ENTRY):
        raw = directory[offset : offset + ENTRY]
        if raw[0] == 0:
            return
        if raw[0] == 0xE5:
            pieces = {}
        elif raw[11] == LONG:
            if raw[0] & 0x40:
                pieces, checksum = {}, raw[13]
            pieces[raw[0] & 0x3F] = raw[1:11] + raw[14:26] + raw[28:32]
        else:
            short = raw[:11]
            if not raw[11] & VOLUME and short.rstrip() not in (b".", b".."):
                high, low, size = struct.unpack("<20xH4xHI", raw)
                whole = pieces and sorted(pieces) == list(range(1, len(pieces) + 1))
                name = _long(pieces) if whole and checksum == _checksum(short) else _visible(short, raw[12])
                yield DirectoryEntry(
                    offset=offset,
                    name=name,
                    short=short,
                    attributes=raw[11],
                    cluster=high << 16 | low,
                    size=size,
                )
            pieces = {}


def new_entries(
    name: str,
    taken: Collection[bytes],
    *,
    attributes: int,
    cluster: int,
    size: int,
    when: datetime.datetime,
) -> bytes:
    """The entries of a new file: its long name's, if it needs one, and the short one."""
    stem, _, extension = name.rpartition(".") if "." in name.strip(".") else (name, "", "")
    plain = stem.ljust(8).encode("ascii", "replace") + extension.ljust(3).encode("ascii", "replace")
    fits = 1 <= len(stem) <= 8 and len(extension) <= 3 and set(stem + extension) <= _SHORT
    if fits and plain not in taken:
        return _short_entry(plain, attributes, cluster, size, when)
    short = _alias(stem, extension, taken)
    units = name.encode("utf-16-le")
    if len(units) % (2 * _UNITS):
        units += b"\0\0"
    units = units.ljust(-(-len(units) // (2 * _UNITS)) * 2 * _UNITS, b"\xff")
    count = len(units) // (2 * _UNITS)
    raw = b""
    for number in range(count, 0, -1):
        piece = units[(number - 1) * 2 * _UNITS : number * 2 * _UNITS]
        order = number | (0x40 if number == count else 0)
        raw += bytes([order]) + piece[:10] + bytes([LONG, 0, _checksum(short)])
        raw += piece[10:22] + b"\0\0" + piece[22:]
    return raw + _short_entry(short, attributes, cluster, size, when)


def patched(raw: bytes, *, cluster: int, size: int, when: datetime.datetime) -> bytes:
    """A short entry (32 bytes) with another content."""
    time, date = _dos(when)
    changed = bytearray(raw)
    struct.pack_into("<HHHHI", changed, 20, cluster >> 16, time, date, cluster & 0xFFFF, size)
    return bytes(changed)


def dot_entries(cluster: int, parent: int, when: datetime.datetime) -> bytes:
    """The first two entries of a folder; ``parent`` is 0 for the root."""
    own = _short_entry(b".".ljust(11), FOLDER, cluster, 0, when)
    return own + _short_entry(b"..".ljust(11), FOLDER, parent, 0, when)


def _short_entry(short: bytes, attributes: int, cluster: int, size: int, when: datetime.datetime) -> bytes:
    time, date = _dos(when)
    return struct.pack(
        "<11sBBBHHHHHHHI",
        short, attributes, 0, 0, time, date, date, cluster >> 16, time, date, cluster & 0xFFFF, size,
    )  # fmt: skip


def _alias(stem: str, extension: str, taken: Collection[bytes]) -> bytes:
    def cleaned(text: str) -> str:
        return "".join(c if c in _SHORT else "_" for c in text.upper() if c not in " .")

    base, tail = cleaned(stem) or "_", cleaned(extension)[:3]
    for number in range(1, 1_000_000):
        mark = f"~{number}"
        short = f"{base[: 8 - len(mark)]}{mark}".ljust(8).encode() + tail.ljust(3).encode()
        if short not in taken:
            return short
    raise ValueError("no short name is left")  # a directory holds 65,536 entries


def _dos(when: datetime.datetime) -> tuple[int, int]:
    year = min(max(when.year, 1980), 2107) - 1980
    return when.hour << 11 | when.minute << 5 | when.second // 2, year << 9 | when.month << 5 | when.day


def _checksum(short: bytes) -> int:
    total = 0
    for byte in short:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def _long(pieces: dict[int, bytes]) -> str:
    units = b"".join(pieces[number] for number in sorted(pieces))
    return units.decode("utf-16-le", "replace").partition("\0")[0]


def _visible(short: bytes, case: int) -> str:
    stem, extension = short[:8].decode("latin-1").rstrip(), short[8:].decode("latin-1").rstrip()
    stem = stem.lower() if case & 0x08 else stem
    extension = extension.lower() if case & 0x10 else extension
    return f"{stem}.{extension}" if extension else stem
