"""Publishing: blobs, then the manifest, then the marker, then what is retired goes.

The broker is a cache. The inventory of retained topics is in the store before the first of them goes out;
the marker goes out last. At each connect marker and manifest are read back, and what differs is
published again: a broker that lost its memory is filled anew, one that kept it costs two messages.
"""

import enum
import hashlib
from collections import deque
from collections.abc import Callable, Iterable

from broker_coordinator.configuration import PublishTable
from broker_coordinator.publication.edition import Edition, Editor
from broker_coordinator.publication.retain_trial import RetainTrial
from broker_coordinator.publication.shelf import BlobShelf
from broker_coordinator.storage.records import InventoryRow, VersionRecord
from broker_coordinator.storage.store import Store
from fl_io.crash import crash_point
from fl_protocol.clock import Clock
from fl_protocol.errors import MessageError, StorageError
from fl_protocol.presence import CoordinatorPresence
from fl_protocol.topics import BlobTopic, FleetTopics
from fl_protocol.transport import Transport

__all__ = ["Publisher"]

READ_BACK_S = 2.0
SETTLED_VERSIONS = 64
"""How far back a restart looks for versions whose blobs are still kept."""


class _Stage(enum.Enum):
    OFF = enum.auto()
    READING = enum.auto()
    TRYING = enum.auto()
    BLOBS = enum.auto()
    MANIFEST = enum.auto()
    MARKER = enum.auto()
    RETIRING = enum.auto()
    IDLE = enum.auto()


class Publisher:
    """Keeps the broker at the newest version. ``presence`` makes our presence with a marker in it."""

    def __init__(
        self,
        *,
        settings: PublishTable,
        topics: FleetTopics,
        task: str,
        editor: Editor,
        store: Store,
        shelf: BlobShelf,
        transport: Transport,
        clock: Clock,
        presence: Callable[[bytes], CoordinatorPresence],
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._task_topic = topics.task(task)
        self._trial_filter = f"{topics.prefix}+"
        self._editor = editor
        self._store = store
        self._shelf = shelf
        self._transport = transport
        self._clock = clock
        self._presence = presence
        self._trial = RetainTrial(settings.retain)
        self._stage = _Stage.OFF
        self._queue: deque[tuple[str, bytes | None]] = deque()
        self._under_way: set[int] = set()
        self._confirmed: set[str] = set()
        self._found: dict[str, bytes] = {}
        self._read_until = 0.0
        self._next_edition_at = 0.0
        self._newest: VersionRecord | None = None
        self._edition: Edition | None = None
        self._recent = self._published_before()
        self._unspoken = False
        self.halted = False

    @property
    def edition(self) -> Edition | None:
        """The edition that is out, or going out."""
        return self._edition

    @property
    def settled(self) -> bool:
        """Whether the newest version is out, marker and all."""
        out = self._edition
        newest = self._newest
        idle = self._stage is _Stage.IDLE
        return idle and out is not None and newest is not None and out.version.id == newest.id

    @property
    def _retained(self) -> bool:
        """Whether there is any use in retained messages here."""
        return self._trial.verdict is not False

    def offer(self, version: VersionRecord) -> None:
        """There is a new version; it goes out when its time comes, unless a newer one is there then."""
        self._newest = version

    def needed(self) -> set[str]:
        """Addresses of the blobs that must stay on the shelf."""
        rows: list[Iterable[str]] = [self._editor.artifact_rows, *(rows for _, rows in self._recent)]
        if self._edition is not None:
            rows.append(self._edition.rows)
        if self._newest is not None:
            rows.append(self._editor.rows(self._newest))
        return {
            topic.address
            for names in rows
            for topic in map(self._topics.parse, names)
            if isinstance(topic, BlobTopic)
        }

    def halt(self) -> None:
        """Publish nothing any more: our store is older than the world."""
        self.halted = True
        self._queue.clear()
        if self._stage is _Stage.TRYING:
            self._transport.unsubscribe([self._trial_filter])
        if self._stage not in (_Stage.OFF, _Stage.READING):
            self._stage = _Stage.IDLE
            self._speak()

    # What happens on the connection

    def connected(self) -> None:
        """Ask for marker and manifest; our own echo behind them ends the wait."""
        self._forget()
        self._stage = _Stage.READING
        self._read_until = self._clock.monotonic() + READ_BACK_S
        self._transport.subscribe([self._task_topic])
        echo = self._presence(b"")
        echo = CoordinatorPresence(
            session=echo.session, epoch=echo.epoch, term=echo.term, challenge=echo.session
        )
        self._transport.publish(self._topics.coordinator, echo.pack())

    def disconnected(self) -> None:
        """What was under way may be lost: everything is read back at the next connect."""
        self._forget()
        self._trial.broken_off()
        self._stage = _Stage.OFF

    def read_back(self, topic: str, payload: bytes) -> None:
        """A retained message of ours came back."""
        if self._stage is _Stage.READING:
            self._found[topic] = payload
        if topic == self._topics.coordinator and self._trial.verdict is None:
            self._trial.came_back()

    def echoed(self) -> None:
        """Our echo is back: whatever is retained came before it."""
        if self._stage is _Stage.READING:
            self._read_until = self._clock.monotonic()

    def delivered(self, token: int) -> None:
        """The broker has one of our messages."""
        self._under_way.discard(token)
        if self._stage is _Stage.TRYING and self._trial.delivered(token):
            self._transport.subscribe([self._trial_filter])

    def work(self) -> float | None:
        """Go on as far as the window allows; seconds until there is more to do, None if that depends on
        the connection or on a new version.

        Raises:
            StorageError: a blob is damaged or gone, or the disk refuses.
        """
        while True:
            now = self._clock.monotonic()
            if self._stage is _Stage.OFF:
                return None
            if self._stage is _Stage.READING:
                if now < self._read_until and len(self._found) < 2:
                    return self._read_until - now
                self._compare()
            elif self._stage is _Stage.TRYING:
                wait = self._attend_trial(now)
                if self._stage is _Stage.TRYING:
                    return wait
            elif self._stage is _Stage.IDLE:
                if self._unspoken:
                    self._speak()
                if self.halted or self._newest is None or self.settled:
                    return None
                if now < self._next_edition_at:
                    return self._next_edition_at - now
                self._begin()
            elif not self._sent():
                return None
            else:
                self._advance()

    # The stages

    def _compare(self) -> None:
        """Everything is there, or everything goes out again."""
        self._transport.unsubscribe([self._task_topic])
        marker = _marker(self._found.get(self._topics.coordinator, b""))
        edition = self._edition
        if edition is None and self._newest is not None and not self.halted:
            edition = self._edition = self._editor.edition(self._newest)
        same = (
            edition is not None
            and self._found.get(self._task_topic) == edition.envelope
            and marker == edition.marker
        )
        self._found.clear()
        if self.halted or edition is None:
            self._stage = _Stage.IDLE
            self._speak()
        elif same:
            self._confirmed = set(edition.rows)
            self._enter(_Stage.MARKER)
        elif self._trial.verdict is None:
            self._stage = _Stage.TRYING
        else:
            self._begin()

    def _attend_trial(self, now: float) -> float | None:
        """Begin with the newest version once the trial is over; seconds until then, None if that depends on
        the connection."""
        if not (self._trial.begun or self._tried(now)):
            return None
        if left := self._trial.left(now):
            return left
        self._transport.unsubscribe([self._trial_filter])
        self._begin()
        return None

    def _tried(self, now: float) -> bool:
        """Ask the broker to keep something, if the window has room for that. It is asked back by a filter
        that is not subscribed to yet: not every broker sends retained messages again on the same one."""
        presence = self._presence(b"").pack()
        token = self._transport.publish(self._topics.coordinator, presence, retain=True)
        if token is not None:
            self._trial.begin(token, now)
        return token is not None

    def _begin(self) -> None:
        """Take the newest version, and record every topic of it before the first goes out."""
        assert self._newest is not None
        if self._edition is None or self._edition.version.id != self._newest.id:
            self._edition = self._editor.edition(self._newest)
        self._next_edition_at = self._clock.monotonic() + self._settings.every_s
        if self._retained:
            self._record(self._edition)
        self._enter(_Stage.BLOBS)

    def _record(self, edition: Edition) -> None:
        rows = {row.topic: row for row in self._store.inventory()}
        number = edition.version.number
        fresh = {
            topic: InventoryRow(topic=topic, sha256=sha256, first_version=number)
            for topic, sha256 in edition.rows.items()
            if topic not in rows
        }
        if fresh:
            self._store.replace_inventory([*rows.values(), *fresh.values()])

    def _enter(self, stage: _Stage) -> None:
        edition = self._edition
        assert edition is not None
        self._stage = stage
        if stage is _Stage.BLOBS and self._retained:
            # Small addresses first would do as well; a fixed order makes runs comparable.
            self._queue.extend((topic, None) for topic in sorted(edition.rows.keys() - self._confirmed))
        elif stage is _Stage.MANIFEST:
            self._queue.append((self._task_topic, edition.envelope))
        elif stage is _Stage.MARKER:
            presence = self._presence(edition.marker if self._retained else b"")
            self._queue.append((self._topics.coordinator, presence.pack()))
        elif stage is _Stage.RETIRING:
            self._queue.extend((topic, b"") for topic in self._retired())

    def _advance(self) -> None:
        """A stage is with the broker, all of it."""
        edition = self._edition
        assert edition is not None
        if self._stage is _Stage.BLOBS:
            crash_point("publish.blobs.delivered")
            self._confirmed |= edition.rows.keys()
            self._enter(_Stage.MANIFEST)
        elif self._stage is _Stage.MANIFEST:
            crash_point("publish.manifest.delivered")
            if not edition.version.published:
                self._store.mark_published(edition.version.number)
            self._recent = [(n, r) for n, r in self._recent if n != edition.version.number]
            self._recent.append((edition.version.number, self._editor.rows(edition.version)))
            self._recent = self._recent[-self._settings.keep :]
            self._enter(_Stage.MARKER)
        elif self._stage is _Stage.MARKER:
            crash_point("publish.marker.delivered")
            self._enter(_Stage.RETIRING)
        else:
            crash_point("publish.retired.delivered")
            self._retire()
            self._stage = _Stage.IDLE

    def _retired(self) -> list[str]:
        """Retained topics that no version needs whose blobs are kept."""
        assert self._edition is not None
        kept = self._edition.rows.keys() | {topic for _, rows in self._recent for topic in rows}
        return [row.topic for row in self._store.inventory() if row.topic not in kept]

    def _retire(self) -> None:
        gone = set(self._retired())
        if gone:
            self._store.replace_inventory([r for r in self._store.inventory() if r.topic not in gone])
            self._confirmed -= gone

    def _sent(self) -> bool:
        """Fill the window; whether all of this stage is with the broker."""
        while self._queue:
            topic, payload = self._queue[0]
            content = payload if payload is not None else self._chunk(topic)
            token = self._transport.publish(topic, content, retain=self._retained)
            if token is None:
                return False
            self._queue.popleft()
            self._under_way.add(token)
            self._gone_out()
        return not self._under_way

    def _gone_out(self) -> None:
        match self._stage:
            case _Stage.BLOBS:
                crash_point("publish.blob")
            case _Stage.MANIFEST:
                crash_point("publish.manifest")
            case _Stage.MARKER:
                crash_point("publish.marker")
            case _Stage.RETIRING:
                crash_point("publish.retired")

    def _chunk(self, topic: str) -> bytes:
        blob = self._topics.parse(topic)
        assert isinstance(blob, BlobTopic)
        assert self._edition is not None
        content = self._shelf.chunk(blob.address, blob.chunk_bytes, blob.index)
        # An empty chunk would say that the blob is gone, a wrong one would be fetched again and again.
        if content is None or hashlib.sha256(content).digest() != self._edition.rows[topic]:
            raise StorageError(
                f"chunk {blob.index} of blob {blob.address} is damaged or gone from the state folder",
                hint="start the coordinator again: it makes anew what it publishes",
            )
        return content

    def _speak(self) -> None:
        """Show our presence without a claim to what is retained, now or when there is room for it."""
        token = self._transport.publish(self._topics.coordinator, self._presence(b"").pack())
        self._unspoken = token is None

    def _forget(self) -> None:
        self._queue.clear()
        self._under_way.clear()
        self._confirmed.clear()
        self._found.clear()

    def _published_before(self) -> list[tuple[int, Iterable[str]]]:
        versions = [record for record in self._store.versions(SETTLED_VERSIONS) if record.published]
        return [(record.number, self._editor.rows(record)) for record in versions[-self._settings.keep :]]


def _marker(presence: bytes) -> bytes:
    try:
        return CoordinatorPresence.unpack(presence).marker if presence else b""
    except MessageError:
        return b""
