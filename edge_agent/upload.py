"""Uploads: every update in the outbox, told to the coordinator until it answers for it.

The broker's acknowledgement is only a reason to stop sending for a while. A payload goes out once when
it is new, and again only when the coordinator's answer is ``open``.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edge_agent.outbox import Outbox, OutboxEntry
from fl_io.crash import crash_point
from fl_protocol.clock import Clock
from fl_protocol.receipt import Receipt
from fl_protocol.topics import OFFSET_UNIT, FleetTopics
from fl_protocol.transport import Transport
from fl_protocol.update import INLINE_BYTES, UpdateHeader

__all__ = ["Uploads"]

WINDOW = 4
"""Updates under way at once, the oldest first."""
CHUNK_BYTES = 1 << 16
FIRST_PROBE_S = 30.0
LONGEST_PROBE_S = 6 * 3600.0
AFTER_CREDIT_S = 5.0
"""All credit is spent and the broker has it: ask again soon, should the coordinator not have it."""


@dataclass(slots=True, kw_only=True)
class _Upload:
    entry: OutboxEntry
    due: float = 0.0
    attempt: int = 0
    carry: bool = False
    """Whether the next ``begin`` carries the payload."""
    deferred: bool = False
    chunks: deque[tuple[int, int]] = field(default_factory=deque)
    under_way: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Payload bytes that the broker has not acknowledged, by token."""

    @property
    def small(self) -> bool:
        return self.entry.size <= INLINE_BYTES


class Uploads:
    """The conversation about every waiting update, over one connection.

    Raises:
        StorageError: from ``receive`` and ``work``, if the outbox cannot be read or written; the update
            stays, and is asked about again.
    """

    def __init__(
        self,
        topics: FleetTopics,
        device: str,
        transport: Transport,
        clock: Clock,
        outbox: Outbox,
        *,
        chance: random.Random | None = None,
    ) -> None:
        self.last_refusal = ""
        self._topics = topics
        self._device = device
        self._transport = transport
        self._clock = clock
        self._outbox = outbox
        self._chance = chance or random.Random()
        self._connected = False
        # What an earlier life of this process may have sent: asked about first, never sent blindly.
        self._uploads = {entry.update_id: _Upload(entry=entry) for entry in outbox.entries()}

    def __len__(self) -> int:
        return len(self._uploads)

    def add(self, entry: OutboxEntry) -> None:
        """Take on an update that was never sent."""
        self._uploads[entry.update_id] = _Upload(entry=entry, carry=entry.size <= INLINE_BYTES)

    def forget(self, update_ids: Iterable[bytes]) -> None:
        """Give up updates that the outbox let go."""
        for update_id in update_ids:
            self._uploads.pop(update_id, None)

    def connected(self) -> None:
        """A new connection: ask about everything."""
        self._connected = True
        self._ask_again(0.0)

    def disconnected(self) -> None:
        """Nothing is under way any more."""
        self._connected = False
        for upload in self._uploads.values():
            upload.chunks.clear()
            upload.under_way.clear()

    def coordinator_changed(self, spread_s: float) -> None:
        """Another session of the coordinator: its credit is gone; ask within ``spread_s`` seconds."""
        self._ask_again(spread_s)

    def delivered(self, token: int) -> None:
        """The broker has a publish of ours."""
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
            crash_point("agent.settled")
            self._uploads.pop(update_id, None)
            if settled and reason:
                self.last_refusal = reason
            return settled
        upload = self._uploads.get(update_id)
        if upload is None:
            return False
        now = self._clock.monotonic()
        if receipt.state == "later":
            upload.deferred = True
            upload.chunks.clear()
            upload.due = now + max(receipt.wait_s, 1.0) * self._chance.uniform(1.0, 1.5)
        elif upload.small:
            # A payload still on its way is the answer to an `open` that crossed it.
            if not upload.under_way and receipt.credit >= upload.entry.size:
                upload.carry, upload.deferred, upload.due = True, False, now
        else:
            self._spend(upload, receipt)
        return False

    def work(self) -> float:
        """Send what is due; seconds until more is."""
        if not self._connected:
            return LONGEST_PROBE_S
        now = self._clock.monotonic()
        for upload in list(self._active(now)):
            try:
                if not self._send(upload, now):
                    break
            except KeyError:
                self._uploads.pop(upload.entry.update_id, None)
        waits = [upload.due - now for upload in self._active(now) if not upload.chunks]
        waits += [upload.due - now for upload in self._uploads.values() if upload.deferred]
        return max(min(waits, default=LONGEST_PROBE_S), 0.0)

    def _active(self, now: float) -> Iterator[_Upload]:
        """The oldest few that the coordinator has not put off."""
        count = 0
        for upload in self._uploads.values():
            if upload.deferred and upload.due > now:
                continue
            yield upload
            count += 1
            if count == WINDOW:
                return

    def _send(self, upload: _Upload, now: float) -> bool:
        """Send what is due of one update; ``False`` if the connection takes no more now."""
        update_id, size = upload.entry.update_id, upload.entry.size
        while upload.chunks:
            start, end = upload.chunks[0]
            chunk = self._outbox.payload_range(update_id, start, end)
            token = self._transport.publish(self._topics.chunk(self._device, update_id, start), chunk)
            if token is None:
                return False
            upload.under_way[token] = upload.chunks.popleft()
            crash_point("agent.chunk")
            upload.due = now + self._probe_delay(0)
        if now < upload.due:
            return True
        body = upload.entry.header
        if upload.carry:
            header, _ = UpdateHeader.unpack(body)
            body = header.pack(self._outbox.payload_range(update_id, 0, size))
        token = self._transport.publish(self._topics.begin(self._device, update_id), body)
        if token is None:
            return False
        if upload.carry:
            upload.under_way[token] = (0, size)
            crash_point("agent.upload")
        upload.carry = upload.deferred = False
        upload.due = now + self._probe_delay(upload.attempt)
        upload.attempt += 1
        return True

    def _spend(self, upload: _Upload, receipt: Receipt) -> None:
        """Queue what is missing, within the credit, in pieces that start where chunks may."""
        upload.deferred = False
        upload.chunks.clear()
        under_way = set(upload.under_way.values())
        for start, end in receipt.missing.first(receipt.credit):
            at = start - start % OFFSET_UNIT
            while at < min(end, upload.entry.size):
                stop = min(at - at % CHUNK_BYTES + CHUNK_BYTES, end, upload.entry.size)
                if (at, stop) not in under_way:
                    upload.chunks.append((at, stop))
                at = stop if stop % OFFSET_UNIT == 0 else end
        upload.attempt = 0
        upload.due = self._clock.monotonic() + self._probe_delay(0)

    def _ask_again(self, spread_s: float) -> None:
        now = self._clock.monotonic()
        for upload in self._uploads.values():
            upload.chunks.clear()
            upload.attempt = 0
            upload.deferred = False
            upload.due = now + self._chance.uniform(0.0, spread_s)

    def _probe_delay(self, attempt: int) -> float:
        """30 s doubling to 6 h, and as much again at random: a fleet must not ask in step."""
        delay = min(FIRST_PROBE_S * 2.0 ** min(attempt, 16), LONGEST_PROBE_S)
        return self._chance.uniform(delay, 2.0 * delay)
