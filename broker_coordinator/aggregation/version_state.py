"""A version's whole state: all that the next version depends on besides the updates, as exact bytes.

The file is ``LICHENV1``, the length of a msgpack map (uint32), the map, and the arrays it announces, all
little-endian: master, each slot by name, past buffers, norms, witnesses. One state has one form; its sha256
is the version's identity.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.storage.records import VersionRecord
from fl_io.disk import DISK, Disk, make_folder, sweep_unfinished, write_file
from fl_protocol.errors import MessageError, StorageError
from fl_protocol.fields import pack, unpack
from fl_protocol.layout import FINGERPRINT_BYTES, MAX_PARAMETERS

__all__ = ["CACHE_SLOT", "VersionFiles", "VersionState"]

_MAGIC = b"LICHENV1"
_LENGTH = struct.Struct("<I")
_MAX_HEADER = 4096

CACHE_SLOT = "ca2fl:"
"""Slots of this beginning are the aggregator's: see ``calibration``."""
MOST_REMEMBERED = 32
"""The buffers of so many earlier versions are kept in a state; in a fleet with three times as many devices at
work as a version takes, updates are about three versions late."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VersionState:
    """Version ``number`` of ``epoch``.

    ``master`` float32[n] holds the weights, and the last ``buffer_size`` elements are buffers; ``slots``
    are the server optimizer's, float32[n - buffer_size] each. ``norms`` float32[m] and ``witnesses``
    uint32[m] are the defence's window: the norms of the newest updates folded, and a tag of the device
    behind each. ``past_buffers`` float32[k, buffer_size] are the buffers of the k versions before this one,
    the oldest first: late updates are deltas to them. ``fingerprint`` is the layout's.
    """

    epoch: int
    number: int
    fingerprint: bytes
    master: NDArray[np.float32]
    slots: Mapping[str, NDArray[np.float32]]
    norms: NDArray[np.float32]
    witnesses: NDArray[np.uint32]
    buffer_size: int = 0
    past_buffers: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @classmethod
    def initial(
        cls,
        weights: NDArray[np.float32],
        *,
        fingerprint: bytes,
        buffer_size: int = 0,
        slots: tuple[str, ...] = (),
        epoch: int = 1,
    ) -> "VersionState":
        """Version 0: the artifact's weights and buffers, float32[n]; slots at zero."""
        return cls(
            epoch=epoch,
            number=0,
            fingerprint=fingerprint,
            master=np.array(weights, np.float32),
            slots={name: np.zeros(len(weights) - buffer_size, np.float32) for name in slots},
            norms=np.zeros(0, np.float32),
            witnesses=np.zeros(0, np.uint32),
            buffer_size=buffer_size,
            past_buffers=np.zeros((0, buffer_size), np.float32),
        )

    @property
    def buffers(self) -> NDArray[np.float32]:
        """This version's buffers: float32[buffer_size]."""
        return self.master[len(self.master) - self.buffer_size :]

    def buffers_of(self, number: int) -> NDArray[np.float32] | None:
        """The buffers of an earlier version, or of this one; None for one that is not remembered."""
        if number == self.number:
            return self.buffers
        place = number - self.number + len(self.past_buffers)
        return self.past_buffers[place] if 0 <= place < len(self.past_buffers) else None

    def remembered(self) -> NDArray[np.float32]:
        """``past_buffers`` of the version after this one."""
        if not self.buffer_size:
            return self.past_buffers
        return np.concatenate([self.past_buffers, self.buffers[np.newaxis]])[-MOST_REMEMBERED:]

    def reopened(self, epoch: int) -> "VersionState":
        """The next version, in a higher epoch, with everything else as it is; but for the cache, which is
        added up anew."""
        slots = {name: slot for name, slot in self.slots.items() if not name.startswith(CACHE_SLOT)}
        return replace(self, epoch=epoch, number=self.number + 1, slots=slots, past_buffers=self.remembered())

    def pack(self) -> bytes:
        """The bytes of the state file."""
        fields: dict[str, Any] = {
            "e": self.epoch,
            "n": self.number,
            "f": self.fingerprint,
            "p": len(self.master),
            "s": sorted(self.slots),
            "w": len(self.norms),
        }
        if self.buffer_size:
            fields |= {"b": self.buffer_size, "h": len(self.past_buffers)}
        header = pack(fields)
        slots = [self.slots[name] for name in sorted(self.slots)]
        arrays = [self.master, *slots, self.past_buffers, self.norms]
        raw = [np.ascontiguousarray(array, "<f4").tobytes() for array in arrays]
        witnesses = np.ascontiguousarray(self.witnesses, "<u4").tobytes()
        return b"".join([_MAGIC, _LENGTH.pack(len(header)), header, *raw, witnesses])

    def digest(self) -> bytes:
        """sha256 of the state file: 32 bytes."""
        return hashlib.sha256(self.pack()).digest()

    @classmethod
    def unpack(cls, content: bytes) -> "VersionState":
        """Read a state file.

        Raises:
            StorageError: it is not one, or is cut off.
        """
        start = len(_MAGIC) + _LENGTH.size
        if len(content) < start or not content.startswith(_MAGIC):
            raise StorageError("not a version's state: its first bytes are others")
        (length,) = _LENGTH.unpack_from(content, len(_MAGIC))
        try:
            fields = unpack(content[start : start + length], limit=_MAX_HEADER)
            slots = [str(name) for name in fields.array("s", most=8)]
            size = fields.integer("p", low=1, high=MAX_PARAMETERS)
            buffer_size = fields.integer("b", low=1, high=size - 1) if "b" in fields else 0
            past = fields.integer("h", high=MOST_REMEMBERED) if buffer_size else 0
            window = fields.integer("w", high=1 << 16)
            epoch, number = fields.integer("e"), fields.integer("n")
            fingerprint = fields.octets("f", length=FINGERPRINT_BYTES)
        except MessageError as error:
            raise StorageError(f"not a version's state: {error}") from None
        weights = size - buffer_size
        ends = [size + at * weights for at in range(len(slots) + 1)]
        ends.append(ends[-1] + past * buffer_size)
        floats = ends[-1] + window
        wanted = start + length + 4 * (floats + window)
        if len(content) != wanted:
            raise StorageError(f"a version's state of {len(content)} bytes, where {wanted} are announced")
        values = np.frombuffer(content, "<f4", offset=start + length, count=floats).astype(np.float32)
        master, *of_slots, past_buffers, norms = np.split(values, ends)
        return cls(
            epoch=epoch,
            number=number,
            fingerprint=fingerprint,
            master=master,
            slots=dict(zip(slots, of_slots, strict=True)),
            norms=norms,
            witnesses=np.frombuffer(content, "<u4", offset=wanted - 4 * window).astype(np.uint32),
            buffer_size=buffer_size,
            past_buffers=past_buffers.reshape(past, buffer_size),
        )


class VersionFiles:
    """The state files of a state folder: ``versions/<epoch>-<number>.state``."""

    def __init__(self, folder: Path, *, disk: Disk = DISK) -> None:
        self._folder = folder / "versions"
        self._disk = disk

    def path(self, epoch: int, number: int) -> Path:
        """Where a version's state is."""
        return self._folder / f"{epoch}-{number}.state"

    def write(self, state: VersionState) -> bytes:
        """Write a state file, durably; its digest. To be done before the version is committed.

        Raises:
            StorageError: the disk refuses.
        """
        content = state.pack()
        make_folder(self._folder, purpose="coordinator.versions", disk=self._disk)
        path = self.path(state.epoch, state.number)
        write_file(path, content, purpose="coordinator.state_file", disk=self._disk)
        return hashlib.sha256(content).digest()

    def read(self, version: VersionRecord) -> VersionState:
        """The state of a committed version, its digest checked.

        Raises:
            StorageError: it is not kept any more, damaged, or not the one that was committed.
        """
        path = self.path(version.epoch, version.number)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise StorageError(
                f"the state of version {version.number} is not kept: {path} is not there",
                hint="retention removes old versions; `lichen versions` lists those that are kept",
            ) from None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from None
        if hashlib.sha256(content).digest() != version.digest:
            raise StorageError(
                f"{path} is not the state that was committed as version {version.number}",
                hint="restore a backup made by `lichen backup`",
            )
        return VersionState.unpack(content)

    def kept(self) -> list[tuple[int, int]]:
        """(epoch, number) of every state file, in order."""
        names = [path.stem.split("-") for path in self._folder.glob("*-*.state")]
        return sorted((int(epoch), int(number)) for epoch, number in names)

    def sweep(self) -> int:
        """Remove what crashes have left unfinished; how many files. Only at the start."""
        return sweep_unfinished(self._folder, disk=self._disk)

    def remove_below(self, number: int) -> int:
        """Remove the state files of versions below ``number``; how many."""
        old = [version for version in self.kept() if version[1] < number]
        for version in old:
            self._disk.remove(self.path(*version))
        return len(old)
