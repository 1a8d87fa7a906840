"""Uploads: every update in the outbox, told to the coordinator until it answers for it.

The broker's acknowledgement is only a reason to stop sending for a while. A payload goes out once when
it is new, and again only when the coordinator's answer is ``open``; if that answer comes again and again
and nothing arrives there, less and less often.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from edge_agent.chance import Chance
from edge_agent.outbox import Outbox, OutboxEntry
from edge_agent.sqlite_file import is_damage
from fl_io.crash import crash_point
from fl_protocol.clock import Clock
from fl_protocol.errors import MessageError, StorageError
from fl_protocol.receipt import Receipt
from fl_protocol.topics import OFFSET_UNIT, FleetTopics
from fl_protocol.transport import Transport
from fl_protocol.update import INLINE_BYTES, with_payload
from fl_protocol.version import VersionId

__all__ = ["Uploads"]

WINDOW = 4
"""Updates under way at once, the oldest first."""
CHUNK_BYTES = 1 << 16
CAUTIOUS_CHUNK_BYTES = 1 << 14
"""After a connection that broke with chunks under way: of a chunk that is cut off, all is lost."""
FIRST_PROBE_S = 30.0
LONGEST_PROBE_S = 6 * 3600.0
AFTER_CREDIT_S = 5.0
"""All credit is spent and the broker has it: ask again soon, should the coordinator not have it."""
FREE_STALLS = 3
"""``open`` answers without progress, in one connection, that are obeyed at once: messages do get lost."""
STUCK_S = 600.0
"""A broker that acknowledged nothing for so long will not: only a new connection empties the window."""
FULL_S = 60.0
_log = logging.getLogger("lichen.agent")


@dataclass(slots=True, kw_only=True)
class _Upload:
    entry: OutboxEntry
    sent: bool
    """Whether any of it may have been sent before: then it is asked about first, never sent blindly."""
    carry: bool
    """Whether the next ``begin`` carries the payload."""
    missing: int
    """Bytes that the coordinator missed when it last said ``open``."""
    due: float = 0.0
    attempt: int = 0
    stalls: int = 0
    deferred: bool = False
    """Whether it makes room for others until it is due."""
    chunks: tuple[tuple[int, int], ...] = ()
    under_way: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Payload bytes that the broker has not acknowledged, by token."""

    @classmethod
    def of(cls, entry: OutboxEntry, *, sent: bool) -> "_Upload":
        carry = not sent and entry.size <= INLINE_BYTES
        return cls(entry=entry, sent=sent, carry=carry, missing=entry.size + 1)

    @property
    def small(self) -> bool:
        return self.entry.size <= INLINE_BYTES

    def put_off(self, until: float) -> None:
        self.deferred, self.due = True, until


class Uploads:
    """The conversation about every waiting update, over one connection. One that was never sent, and whose
    base ``is_late``, is let go instead of sent; ``refused`` hears of one that was refused: its base, and why.

    Raises:
        StorageError: from ``receive``, if the outbox cannot be written (the update stays, and is asked
            about again), and from ``work``, if the outbox is damaged.
    """

    __slots__ = (
        "_chance",
        "_chunk_bytes",
        "_clock",
        "_connected",
        "_device",
        "_is_late",
        "_moved_at",
        "_outbox",
        "_refused",
        "_topics",
        "_transport",
        "_unacknowledged",
        "_uploads",
        "last_refusal",
        "unreadable",
    )

    def __init__(
        self,
        topics: FleetTopics,
        device: str,
        transport: Transport,
        clock: Clock,
        outbox: Outbox,
        *,
        is_late: Callable[[VersionId], bool] = lambda base: False,
        refused: Callable[[VersionId, str], None] = lambda base, reason: None,
        chance: Chance | None = None,
    ) -> None:
        self.last_refusal = ""
        self.unreadable = 0
        """Times that an update could not be read from the outbox."""
        self._topics = topics
        self._device = device
        self._transport = transport
        self._clock = clock
        self._outbox = outbox
        self._is_late = is_late
        self._refused = refused
        self._chance = chance or random.Random()
        self._connected = False
        self._chunk_bytes = CHUNK_BYTES
        self._unacknowledged: tuple[int, ...] = ()
        self._moved_at = 0.0
        self._uploads = {entry.update_id: _Upload.of(entry, sent=True) for entry in outbox.entries()}

    def __len__(self) -> int:
        return len(self._uploads)

    def add(self, entry: OutboxEntry) -> None:
        """Take on an update that was never sent; a wait for the broker that grew while there was nothing to
        send ends at once."""
        self._uploads[entry.update_id] = _Upload.of(entry, sent=False)
        if not self._connected:
            self._transport.renew()

    def forget(self, update_ids: Iterable[bytes]) -> None:
        """Give up updates that the outbox let go."""
        for update_id in update_ids:
            self._uploads.pop(update_id, None)

    def connected(self) -> None:
        """A new connection: ask about everything."""
        self._connected = True
        for upload in self._uploads.values():
            upload.stalls = 0
        self._ask_again(0.0)

    def disconnected(self) -> None:
        """Nothing is under way any more."""
        self._connected = False
        self._unacknowledged = ()
        for upload in self._uploads.values():
            if upload.under_way and not upload.small:
                self._chunk_bytes = CAUTIOUS_CHUNK_BYTES
            upload.chunks = ()
            upload.under_way.clear()

    def coordinator_changed(self, spread_s: float) -> None:
        """Another session of the coordinator: its credit is gone; ask within ``spread_s`` seconds."""
        self._ask_again(spread_s)

    def delivered(self, token: int) -> None:
        """The broker has a publish of ours."""
        if token not in self._unacknowledged:
            return
        self._unacknowledged = tuple(other for other in self._unacknowledged if other != token)
        self._moved_at = self._clock.monotonic()
        for upload in self._uploads.values():
            if upload.under_way.pop(token, None):
                crash_point("agent.delivered")
                if not upload.small and not upload.under_way and not upload.chunks:
                    soon = self._clock.monotonic() + AFTER_CREDIT_S * self._chance.uniform(1.0, 2.0)
                    upload.due = min(upload.due, soon)
                return

    def receive(self, update_id: bytes, receipt: Receipt) -> bool:
        """Take the coordinator's word; whether it ended an update."""
        if receipt.terminal:
            crash_point("agent.receipt")
            reason = receipt.reason if receipt.state == "refused" else ""
            settled = self._outbox.settle(update_id, receipt.state, reason)
            upload = self._uploads.pop(update_id, None)
            if not any(upload.under_way for upload in self._uploads.values()):
                self._chunk_bytes = CHUNK_BYTES
            if settled and reason:
                self.last_refusal = reason
                if upload is not None:
                    self._refused(upload.entry.base, reason)
            return settled
        upload = self._uploads.get(update_id)
        if upload is None:
            return False
        if receipt.state == "later":
            upload.chunks = ()
            wait_s = max(receipt.wait_s, 1.0) * self._chance.uniform(1.0, 1.5)
            upload.put_off(self._clock.monotonic() + wait_s)
        elif upload.small:
            # A payload still on its way is the answer to an `open` that crossed it.
            if not upload.under_way and receipt.credit >= upload.entry.size:
                upload.carry = True
                self._go_on(upload, receipt, due=self._clock.monotonic())
        else:
            self._spend(upload, receipt)
        return False

    def work(self) -> float:
        """Send what is due; seconds until more is."""
        if not self._connected or not (self._uploads or self._unacknowledged):
            return LONGEST_PROBE_S
        now = self._clock.monotonic()
        patience = self._moved_at + STUCK_S - now if self._unacknowledged else LONGEST_PROBE_S
        if patience <= 0:
            _log.warning("the broker acknowledges nothing; connecting anew")
            self._moved_at = now
            self._transport.renew()
            return FULL_S
        for upload in list(self._active(now)):
            if not self._attempt(upload, now):
                # What makes room, an acknowledgement or the connection's end, calls us sooner.
                return min(FULL_S, patience)
        dues = [upload.due for upload in self._active(now)]
        dues += [upload.due for upload in self._uploads.values() if upload.deferred and upload.due > now]
        return max(min([due - now for due in dues] + [patience]), 0.0)

    def _active(self, now: float) -> Iterator[_Upload]:
        """The oldest few that were not put off."""
        count = 0
        for upload in self._uploads.values():
            if upload.deferred and upload.due > now:
                continue
            yield upload
            count += 1
            if count == WINDOW:
                return

    def _attempt(self, upload: _Upload, now: float) -> bool:
        """Send what is due of one update. One that cannot be read gives way to the others for a while."""
        try:
            return self._send(upload, now)
        except KeyError:  # the outbox let it go, being full
            self._uploads.pop(upload.entry.update_id, None)
        except (StorageError, MessageError) as error:
            if is_damage(error):
                raise
            self.unreadable += 1
            _log.error("update %s: %s", upload.entry.update_id.hex(), error)
            upload.chunks = ()
            upload.put_off(now + self._probe_delay(upload.attempt))
            upload.attempt += 1
        return True

    def _send(self, upload: _Upload, now: float) -> bool:
        """Send what is due of one update; ``False`` if the connection takes no more now."""
        update_id, size = upload.entry.update_id, upload.entry.size
        while upload.chunks:
            start, end = upload.chunks[0]
            chunk = self._outbox.payload_range(update_id, start, end)
            token = self._publish(self._topics.chunk(self._device, update_id, start), chunk)
            if token is None:
                return False
            upload.under_way[token] = start, end
            upload.chunks = upload.chunks[1:]
            crash_point("agent.chunk")
            upload.deferred, upload.due = False, now + self._probe_delay(0)
        if now < upload.due:
            return True
        if not upload.sent and self._is_late(upload.entry.base):
            self._outbox.expire_late(update_id)
            self._uploads.pop(update_id, None)
            return True
        body = upload.entry.header
        if upload.carry:
            body = with_payload(body, self._outbox.payload_range(update_id, 0, size))
        token = self._publish(self._topics.begin(self._device, update_id), body)
        if token is None:
            return False
        if upload.carry:
            upload.under_way[token] = (0, size)
            crash_point("agent.upload")
        else:
            crash_point("agent.probe")
        upload.sent = True
        upload.carry = upload.deferred = False
        upload.due = now + self._probe_delay(upload.attempt)
        upload.attempt += 1
        return True

    def _publish(self, topic: str, body: bytes) -> int | None:
        token = self._transport.publish(topic, body)
        if token is not None:
            if not self._unacknowledged:
                self._moved_at = self._clock.monotonic()
            self._unacknowledged = (*self._unacknowledged, token)
        return token

    def _spend(self, upload: _Upload, receipt: Receipt) -> None:
        """Queue what is missing, within the credit, in pieces that start where chunks may."""
        chunks: list[tuple[int, int]] = []
        under_way = set(upload.under_way.values())
        for start, end in receipt.missing.first(receipt.credit):
            at = start - start % OFFSET_UNIT
            while at < min(end, upload.entry.size):
                stop = min(at - at % self._chunk_bytes + self._chunk_bytes, end, upload.entry.size)
                if (at, stop) not in under_way:
                    chunks.append((at, stop))
                at = stop if stop % OFFSET_UNIT == 0 else end
        upload.chunks = tuple(chunks)
        upload.attempt = 0
        self._go_on(upload, receipt, due=self._clock.monotonic() + self._probe_delay(0))

    def _go_on(self, upload: _Upload, receipt: Receipt, *, due: float) -> None:
        """Send as ``open`` asks, next at ``due``; but later, where it asks for the same too often."""
        moved = receipt.missing.bytes < upload.missing
        upload.missing = receipt.missing.bytes
        upload.stalls = 0 if moved else upload.stalls + (receipt.credit > 0)
        upload.deferred, upload.due = False, due
        if upload.stalls >= FREE_STALLS:
            upload.put_off(self._clock.monotonic() + self._probe_delay(upload.stalls - FREE_STALLS))

    def _ask_again(self, spread_s: float) -> None:
        now = self._clock.monotonic()
        for upload in self._uploads.values():
            upload.chunks = ()
            upload.attempt = 0
            upload.deferred = False
            upload.carry = upload.carry and not upload.sent
            upload.missing = upload.entry.size + 1
            upload.due = now + self._chance.uniform(0.0, spread_s)

    def _probe_delay(self, attempt: int) -> float:
        """30 s doubling to 6 h, and as much again at random: a fleet must not ask in step."""
        delay = min(FIRST_PROBE_S * 2.0 ** min(attempt, 16), LONGEST_PROBE_S)
        return self._chance.uniform(delay, 2.0 * delay)
