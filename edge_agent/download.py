"""Downloads: exactly the chunks that are missing, a window at a time, straight into their file.

A chunk is asked for by subscribing to its retained topic: so a download resumes anywhere, needs nobody but
the broker, and costs no byte twice. A subscription that was answered is taken back when some more have
come: the end of a connection does it for nothing. Where nothing comes, a ``get`` asks the coordinator.
"""

import functools
import hashlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from edge_agent.chance import Chance
from fl_io.crash import crash_point
from fl_io.disk import DISK, Disk, seal_file, write_file
from fl_protocol.blob import BlobRef
from fl_protocol.clock import Clock
from fl_protocol.errors import MessageError
from fl_protocol.presence import GetRequest
from fl_protocol.topics import BlobTopic, FleetTopics, blob_name
from fl_protocol.transport import Transport

__all__ = ["Download", "Downloads"]

WINDOW = 8
"""Chunks asked for at once: 512 KiB on their way, and no more filters than hosted brokers take at once."""
LINGERING = 16
"""Answered subscriptions that a connection may hold: hosted brokers allow 50 in all."""
LINGERING_BYTES = 4096
"""Only for chunks this small: they may come again when a coordinator fills its broker anew."""
PATIENCE_S = 10.0
LONGEST_PATIENCE_S = 600.0
MOVING_BYTES = 4096
"""While this much came through the connection meanwhile, a chunk is on its way: over a slow link one takes
longer than any patience, and asked for it would come twice."""
MOST_EXTENSIONS = 5
"""How often in a row patience is extended for that: perhaps what came was something else."""
FRUITLESS = 3
"""Connections that ended without a chunk, after which what is wanted is not to be had."""
MAX_RESTARTS = 2
"""How often a blob is fetched anew because its chunks did not make the whole, before we wait."""


class Download:
    """One blob on its way to ``path``, which exists only when it is whole, verified and durable.

    What a part file holds is found by hashing it again: after any crash, it is what its bytes say.

    Raises:
        OSError: the disk refuses, from here and from ``take``.
    """

    __slots__ = ("_disk", "_list", "_missing", "_ref", "damaged", "path", "restarts")

    def __init__(self, ref: BlobRef, path: Path, *, disk: Disk = DISK) -> None:
        self.path = path
        self.damaged = 0
        self.restarts = 0
        self._ref = ref
        self._disk = disk
        self._list: Download | None = None
        self._missing: dict[int, None] = {}
        if ref.chunk_list is not None:
            self._list = Download(ref.chunk_list, path.with_name(f".{path.name}.chunks"), disk=disk)
            self._resolve()
        else:
            self._look()

    @property
    def _part(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def complete(self) -> bool:
        """Whether the file is there."""
        return self._list is None and not self._missing

    def missing(self) -> Iterator[tuple[str, int]]:
        """Blob name and index of every chunk to ask for now, in order."""
        if self._list is not None:
            yield from self._list.missing()
            return
        name = blob_name(self._ref.address, self._ref.chunk_bytes)
        for index in self._missing:
            yield _chunk(name, index)

    def take(self, name: str, index: int, chunk: bytes) -> bool:
        """Store a chunk; whether it was one that was missing, and is what its hash says."""
        if self._list is not None:
            taken = self._list.take(name, index, chunk)
            self._resolve()
            return taken
        if name != blob_name(self._ref.address, self._ref.chunk_bytes) or index not in self._missing:
            return False
        if not self._fits(index, chunk):
            self.damaged += 1
            return False
        if self._ref.chunk_count == 1:
            # Small: should a power cut take its name away, it is fetched again.
            write_file(self.path, chunk, purpose="agent.blob", disk=self._disk, name_at_once=False)
            self._missing.clear()
            return True
        self._disk.write_at(self._part, self._ref.chunk_range(index)[0], chunk)
        crash_point("agent.part.chunk")
        del self._missing[index]
        if not self._missing:
            self._finish()
        return True

    def _look(self) -> None:
        """Find out what is missing."""
        if self._ref.size == 0:
            write_file(self.path, b"", purpose="agent.blob", disk=self._disk)
            return
        count = self._ref.chunk_count
        held = set(self._held()) if count > 1 else ()
        self._missing = dict.fromkeys(index for index in range(count) if index not in held)
        if not self._missing:
            self._finish()

    def _held(self) -> Iterator[int]:
        if not self._disk.exists(self._part):
            return
        for index in range(self._ref.chunk_count):
            start, end = self._ref.chunk_range(index)
            if self._fits(index, self._disk.read(self._part, start, end - start)):
                yield index

    def _fits(self, index: int, chunk: bytes) -> bool:
        start, end = self._ref.chunk_range(index)
        return len(chunk) == end - start and hashlib.sha256(chunk).digest() == self._ref.chunks[index]

    def _finish(self) -> None:
        whole = self._disk.sha256(self._part)
        if whole != self._ref.sha256 or self._disk.size(self._part) != self._ref.size:
            # Every chunk fitted, the whole does not: the disk, or a reference that contradicts itself.
            self.damaged += 1
            self.restarts += 1
            self._disk.remove(self._part)
            self._missing = dict.fromkeys(range(self._ref.chunk_count))
            return
        # Should a power cut take the new name away, the part still has it all, and is hashed again.
        seal_file(self._part, self.path, purpose="agent.part", disk=self._disk, name_at_once=False)

    def _resolve(self) -> None:
        """Go on from the chunk list to the chunks, once the list is whole."""
        if self._list is None or not self._list.complete:
            return
        self._ref = self._ref.with_chunk_list(self._disk.read(self._list.path))
        self._disk.remove(self._list.path)
        self._list = None
        self._look()


class Downloads:
    """All that this device fetches now, over one connection."""

    __slots__ = (
        "_ask_at",
        "_chance",
        "_clock",
        "_closing",
        "_connected",
        "_device",
        "_direct",
        "_disk",
        "_downloads",
        "_extended",
        "_fruitless",
        "_goals",
        "_lingering",
        "_open",
        "_patience",
        "_received",
        "_topics",
        "_transport",
        "damaged",
        "gone",
    )

    def __init__(
        self,
        topics: FleetTopics,
        device: str,
        transport: Transport,
        clock: Clock,
        *,
        disk: Disk = DISK,
        chance: Chance | None = None,
    ) -> None:
        self.gone = False
        """Whether a wanted blob cannot be had as things are: it is no longer published, or what came was
        time and again not what its reference says. Nothing is asked for until the coordinator has spoken
        (``want`` of something else, or ``retry``), or the connection is a new one."""
        self.damaged = 0
        self._topics = topics
        self._device = device
        self._transport = transport
        self._clock = clock
        self._disk = disk
        self._chance = chance or random.Random()
        self._goals: dict[Path, BlobRef] = {}
        self._downloads: tuple[Download, ...] = ()
        self._open: dict[tuple[str, int], None] = {}
        self._lingering: tuple[tuple[str, int], ...] = ()
        self._closing: tuple[str, ...] = ()
        self._connected = False
        self._direct = False
        self._patience = PATIENCE_S
        self._ask_at = 0.0
        self._received = 0
        self._extended = 0
        self._fruitless = 0

    @property
    def stalled(self) -> bool:
        """Whether what is wanted does not come: the coordinator was asked for it in vain, or connection
        after connection brought nothing."""
        return not self.complete and (self._patience > PATIENCE_S or self._fruitless > FRUITLESS)

    @property
    def complete(self) -> bool:
        """Whether everything wanted is there."""
        return not self._downloads

    def want(self, goals: Mapping[Path, BlobRef]) -> None:
        """Fetch these blobs to these paths and nothing else; asking again changes nothing.

        Raises:
            OSError: the disk refuses.
        """
        if goals == self._goals:
            # All of it came, and was not what it had been when it was looked at again.
            self.gone = self.gone or (bool(goals) and not self._downloads)
            return
        kept = {d.path: d for d in self._downloads if goals.get(d.path) == self._goals.get(d.path)}
        self._goals = dict(goals)
        self.gone = False
        self._downloads = tuple(
            kept[path] if path in kept else Download(ref, path, disk=self._disk)
            for path, ref in goals.items()
        )
        self._drop_complete()
        wanted = {chunk for download in self._downloads for chunk in download.missing()}
        for chunk in [chunk for chunk in self._open if chunk not in wanted]:
            del self._open[chunk]
            if not self._direct:
                self._closing = (*self._closing, self._topics.blob(*chunk))
        self._fruitless = 0
        if self._downloads:
            self._be_patient(PATIENCE_S)

    def retry(self) -> None:
        """What is wanted is still what the coordinator names: ask it for what was gone.

        Raises:
            OSError: the disk refuses.
        """
        if self.gone:
            goals, self._goals = self._goals, {}
            self.want(goals)
            self._ask_at = self._clock.monotonic()

    def receive(self, topic: BlobTopic, chunk: bytes) -> None:
        """Take a chunk that arrived; an empty one says that it is gone. One that is not what its hash says
        leaves its question open, for the coordinator to answer when patience ends.

        Raises:
            MessageError: a chunk list that contradicts its reference.
            OSError: the disk refuses.
        """
        key = _chunk(blob_name(topic.address, topic.chunk_bytes), topic.index)
        if not chunk:
            self.gone = self.gone or any(key in download.missing() for download in self._downloads)
            return
        for download in self._downloads:
            before = download.damaged
            try:
                taken = download.take(*key, chunk)
            except MessageError:
                self.damaged += 1
                self.gone = True
                raise
            self.damaged += download.damaged - before
            if taken:
                self._taken(download, key, len(chunk), directly=topic.device is not None)
                return

    def _taken(self, download: Download, key: tuple[str, int], size: int, *, directly: bool) -> None:
        """Go on after a chunk that was one of a download's."""
        self._answered(key, size)
        self._direct = self._direct or directly
        self._fruitless = 0
        self.gone = self.gone or download.restarts > MAX_RESTARTS
        if download.complete:
            self._drop_complete()
        if self._downloads:
            self._be_patient(PATIENCE_S)

    def connected(self) -> None:
        """A new connection: nothing is subscribed, and its broker may keep what the last one did not."""
        self._connected = True
        self._fruitless += 1
        self._direct = False
        self.gone = False
        self._open.clear()
        self._lingering = ()
        self._closing = ()
        self._be_patient(PATIENCE_S)

    def disconnected(self) -> None:
        """Nothing more comes, for now."""
        self._connected = False

    def work(self) -> float:
        """Ask for what is due; seconds until there may be more to ask for."""
        if not self._connected or not (self._downloads or self._open or self._lingering or self._closing):
            return LONGEST_PATIENCE_S
        while len(self._lingering) > LINGERING:
            surplus, *_ = self._lingering
            self._lingering = self._lingering[1:]
            self._closing = (*self._closing, self._topics.blob(*surplus))
        if self._closing:
            self._transport.unsubscribe(self._closing)
            self._closing = ()
        if self.gone or not (self._downloads or self._open):
            return LONGEST_PATIENCE_S
        new = self._next_chunks()
        self._open.update(dict.fromkeys(new))
        if self._direct:
            self._get(new)
        elif new:
            self._lingering = tuple(chunk for chunk in self._lingering if chunk not in new)
            self._transport.subscribe([self._topics.blob(*chunk) for chunk in new])
        if not self._open:
            return LONGEST_PATIENCE_S
        now = self._clock.monotonic()
        if now >= self._ask_at and self._moves():
            self._be_patient(self._patience, extended=self._extended + 1)
        elif now >= self._ask_at:
            self._get(list(self._open))
            self._be_patient(min(2 * self._patience, LONGEST_PATIENCE_S))
        return max(self._ask_at - now, 0.0)

    def _next_chunks(self) -> list[tuple[str, int]]:
        room = WINDOW - len(self._open)
        new: dict[tuple[str, int], None] = {}
        for download in self._downloads:
            for chunk in download.missing():
                if len(new) >= room:
                    return list(new)
                if chunk not in self._open:
                    new[chunk] = None
        return list(new)

    def _get(self, chunks: list[tuple[str, int]]) -> None:
        for name, index in chunks:
            request = GetRequest(blob=name, index=index)
            self._transport.publish(self._topics.get(self._device), request.pack())
            crash_point("agent.get.chunk")

    def _answered(self, chunk: tuple[str, int], size: int) -> None:
        if chunk not in self._open:
            return
        del self._open[chunk]
        if not self._direct and size <= LINGERING_BYTES:
            self._lingering = (*self._lingering, chunk)
        elif not self._direct:
            self._closing = (*self._closing, self._topics.blob(*chunk))

    def _drop_complete(self) -> None:
        self._downloads = tuple(download for download in self._downloads if not download.complete)

    def _moves(self) -> bool:
        """Whether the connection has brought something since patience began, and was not long believed."""
        return self._extended < MOST_EXTENSIONS and self._came() >= MOVING_BYTES

    def _came(self) -> int:
        return (self._transport.traffic().received or 0) - self._received

    def _be_patient(self, patience: float, *, extended: int = 0) -> None:
        self._patience, self._extended = patience, extended
        self._received = self._transport.traffic().received or 0
        # Jitter: a broker that lost its store leaves a whole fleet waiting for the same coordinator.
        self._ask_at = self._clock.monotonic() + patience * self._chance.uniform(1.0, 1.5)


@functools.lru_cache(maxsize=256)
def _chunk(name: str, index: int) -> tuple[str, int]:
    """One of a blob's chunks; where many agents share a process, they ask for the same ones."""
    return name, index
