"""Receipts: the coordinator's word on an update, sent only after its own commit.

``done`` and ``refused`` are terminal: the device forgets the update. ``open`` asks for payload bytes,
``later`` for patience; the update stays in the outbox.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from fl_protocol.errors import MessageError
from fl_protocol.fields import pack, unpack
from fl_protocol.ranges import ByteRanges

__all__ = ["MAX_RECEIPT_BYTES", "REFUSALS", "STATES", "Receipt"]

MAX_RECEIPT_BYTES = 8 << 10
MAX_REASON_CHARS = 128
STATES = ("open", "later", "done", "refused")
REFUSALS = (
    "stale",  # trained from a version below the horizon
    "conflict",  # this update id is bound to another header or payload
    "already_counted",  # this device has an accepted update for this base version
    "unknown_base",  # no version of that number has that digest
    "layout",  # a fingerprint that is not the task's
    "codec",  # a codec the task does not ask for, or a payload that does not decode
    "hash",  # the payload has not the hash that its header names
    "not_finite",  # NaN or infinity
    "oversize",  # larger than the codec and layout allow
    "malformed",  # a header that cannot be read
    "kind",  # a kind of update this coordinator does not take
    "unknown_device",  # not enrolled, or revoked
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The state of one update at the coordinator.

    ``missing`` and ``credit`` (bytes the device may send now) belong to ``open``, ``wait_s`` to ``later``,
    ``reason`` to ``refused`` (one of ``REFUSALS``) and, as free text, to ``later``.
    """

    state: str
    epoch: int
    term: int
    reason: str = ""
    wait_s: float = 0.0
    missing: ByteRanges = field(default_factory=ByteRanges)
    credit: int = 0

    @property
    def terminal(self) -> bool:
        """Whether the device may forget the update."""
        return self.state in ("done", "refused")

    def pack(self) -> bytes:
        """The body of ``down/D/update/U``."""
        return pack(
            {
                "s": self.state,
                "e": self.epoch,
                "t": self.term,
                "r": self.reason[:MAX_REASON_CHARS] or None,
                "w": self.wait_s or None,
                "m": self.missing.to_body() if len(self.missing) else None,
                "c": self.credit or None,
            }
        )

    @classmethod
    def unpack(cls, body: bytes) -> "Receipt":
        """Read a receipt; raises MessageError."""
        return _read(body)


@lru_cache(maxsize=16)
def _read(body: bytes) -> Receipt:
    """The receipts of updates that end alike are alike: a term has one that says ``done``."""
    fields = unpack(body, limit=MAX_RECEIPT_BYTES)
    state = fields.text("s", longest=16)
    if state not in STATES:
        raise MessageError(f"a receipt of unknown state {state!r}")
    return Receipt(
        state=state,
        epoch=fields.integer("e"),
        term=fields.integer("t"),
        reason=fields.text("r", longest=MAX_REASON_CHARS, default=""),
        wait_s=fields.number("w", low=0.0, high=7 * 86400.0, default=0.0),
        missing=ByteRanges.from_body(fields.array("m")) if "m" in fields else ByteRanges(),
        credit=fields.integer("c", default=0),
    )
