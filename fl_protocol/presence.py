"""Presence: a device's birth and will, the coordinator's session, and what they ask of each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from fl_protocol.errors import MessageError
from fl_protocol.fields import compact, pack, unpack
from fl_protocol.update import INCARNATION_BYTES

__all__ = [
    "LIFE_BYTES",
    "MAX_EVENT_BYTES",
    "SESSION_BYTES",
    "CoordinatorPresence",
    "DeviceEvent",
    "DevicePresence",
    "GetRequest",
]

SESSION_BYTES = 8
LIFE_BYTES = 4
MAX_PRESENCE_BYTES = 4 << 10
MAX_REASON_CHARS = 256
MAX_EVENT_CHARS = 512
MAX_EVENT_BYTES = 32 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePresence:
    """``state/D``: birth (``online``) or farewell. The will of a session is its farewell.

    ``session`` is random for each connection and compared for equality only: a late will of an older
    session is ignored. ``life`` is random for each run of the agent: one that returns after another shows
    that two devices have one identity. ``seen`` is (epoch, counter) of the newest manifest the device has
    verified, the witness by which a coordinator restored from a backup is recognised.
    """

    online: bool
    session: bytes
    incarnation: bytes | None = None
    agent: str = ""
    runtimes: tuple[str, ...] = ()
    samples: int = 0
    idle_reason: str = ""
    seen: tuple[int, int] = (0, 0)
    life: bytes | None = None

    def pack(self) -> bytes:
        """The body of ``state/D``."""
        return pack(
            {
                "o": self.online,
                "s": self.session,
                "i": self.incarnation,
                "a": self.agent or None,
                "r": ",".join(self.runtimes) or None,
                "x": self.samples or None,
                "w": self.idle_reason[:MAX_REASON_CHARS] or None,
                "e": self.seen[0] or None,
                "c": self.seen[1] or None,
                "l": self.life,
            }
        )

    @classmethod
    def unpack(cls, body: bytes) -> "DevicePresence":
        """Read a presence; raises MessageError."""
        fields = unpack(body, limit=MAX_PRESENCE_BYTES)
        return cls(
            online=fields.flag("o"),
            session=fields.octets("s", length=SESSION_BYTES),
            incarnation=fields.maybe("i", lambda key: fields.octets(key, length=INCARNATION_BYTES)),
            agent=fields.text("a", longest=32, default=""),
            runtimes=tuple(filter(None, fields.text("r", default="").split(","))),
            samples=fields.integer("x", default=0),
            idle_reason=fields.text("w", longest=MAX_REASON_CHARS, default=""),
            seen=(fields.integer("e", default=0), fields.integer("c", default=0)),
            life=fields.maybe("l", lambda key: fields.octets(key, length=LIFE_BYTES)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorPresence:
    """``coordinator``: who coordinates this fleet now.

    ``marker`` is the hash of the inventory of retained topics, published last, so that finding it means
    finding everything. A ``challenge`` (not retained) asks a second coordinator to show itself; the one
    in office answers with its presence and the ``challenge`` it answers.
    """

    session: bytes
    epoch: int
    term: int
    marker: bytes = b""
    challenge: bytes = b""
    rolled_back: bool = False

    def pack(self) -> bytes:
        """The body of ``coordinator``."""
        return pack(
            {
                "s": self.session,
                "e": self.epoch,
                "t": self.term,
                "m": self.marker or None,
                "q": self.challenge or None,
                "b": self.rolled_back or None,
            }
        )

    @classmethod
    def unpack(cls, body: bytes) -> "CoordinatorPresence":
        """Read a presence; raises MessageError."""
        return _presence(body)


@lru_cache(maxsize=16)
def _presence(body: bytes) -> CoordinatorPresence:
    """A coordinator says the same to a whole fleet, and again whenever a device connects."""
    fields = unpack(body, limit=MAX_PRESENCE_BYTES)
    return CoordinatorPresence(
        session=fields.octets("s", length=SESSION_BYTES),
        epoch=fields.integer("e"),
        term=fields.integer("t"),
        marker=fields.maybe("m", lambda key: fields.octets(key, length=32)) or b"",
        challenge=fields.maybe("q", lambda key: fields.octets(key, length=SESSION_BYTES)) or b"",
        rolled_back=fields.flag("b", default=False),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GetRequest:
    """``up/D/get``: asks for the manifest (``blob`` empty) or one chunk of a blob (``blob`` is ``A.S``)."""

    blob: str = ""
    index: int = 0

    def pack(self) -> bytes:
        """The body of ``up/D/get``."""
        return pack({"b": self.blob or None, "i": self.index or None})

    @classmethod
    def unpack(cls, body: bytes) -> "GetRequest":
        """Read a request; raises MessageError."""
        fields = unpack(body, limit=MAX_PRESENCE_BYTES)
        return cls(blob=fields.text("b", longest=64, default=""), index=fields.integer("i", default=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvent:
    """``up/D/event``: ``kind`` is ``error``, ``command``, ``counters`` or ``evidence``.

    ``evidence`` carries, in ``proof``, the newest signed task manifest the device has verified.
    """

    kind: str
    message: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    proof: bytes = b""

    def pack(self) -> bytes:
        """The body of ``up/D/event``."""
        return pack(
            {
                "k": self.kind,
                "t": self.message[:MAX_EVENT_CHARS] or None,
                "n": compact(self.numbers) or None,
                "p": self.proof or None,
            }
        )

    @classmethod
    def unpack(cls, body: bytes) -> "DeviceEvent":
        """Read an event; raises MessageError."""
        fields = unpack(body, limit=MAX_EVENT_BYTES)
        kind = fields.text("k", longest=16)
        if kind not in ("error", "command", "counters", "evidence"):
            raise MessageError(f"an event of unknown kind {kind!r}")
        return cls(
            kind=kind,
            message=fields.text("t", longest=MAX_EVENT_CHARS, default=""),
            numbers=fields.numbers("n") if "n" in fields else {},
            proof=fields.maybe("p", lambda key: fields.octets(key, longest=MAX_EVENT_BYTES)) or b"",
        )
