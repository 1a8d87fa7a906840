"""The update header (``begin``): what a device says of an update, and the payload where it is small."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_protocol.errors import MessageError
from fl_protocol.fields import MAX_NUMBER, Fields, compact, pack, unpack
from fl_protocol.layout import FINGERPRINT_BYTES
from fl_protocol.topics import UPDATE_ID_BYTES
from fl_protocol.version import VersionId

__all__ = [
    "INCARNATION_BYTES",
    "INLINE_BYTES",
    "MAX_BEGIN_BYTES",
    "MAX_METRICS",
    "MAX_UPDATE_BYTES",
    "UpdateHeader",
    "runtime_label",
    "update_hash",
    "with_payload",
]

INCARNATION_BYTES = 8
LEASE_BYTES = 8
MAX_METRICS = 16
"""Numbers in each of ``before`` and ``after``."""
INLINE_BYTES = 60 << 10
"""A payload up to this size travels in ``begin`` itself; header and payload stay within 64 KiB."""
MAX_BEGIN_BYTES = 64 << 10
MAX_UPDATE_BYTES = 1 << 30
PLAIN = "plain"
LONGEST_RUNTIME = 16
_FIXMAP = 0x80
"""How a msgpack map of up to 15 keys begins: a header has no more, and one with its payload 16."""
_MAP16 = b"\xde"
_STRANGE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateHeader:
    """One update of one device.

    ``base`` is the version it was trained from; ``metrics`` holds ``before.*`` (the published base) and
    ``after.*`` (the device's own trained weights) on the device's held-out samples, as sums and counts,
    none beyond float32.
    ``num_examples`` counts distinct training examples. ``incarnation`` names the state directory that
    made it. ``lease`` is the lease it answers, if any. ``runtime`` names what trained it (``runtime_label``),
    empty where the device does not say.
    """

    incarnation: bytes
    base: VersionId
    codec: str
    size: int
    sha256: bytes
    fingerprint: bytes
    num_examples: int
    steps_done: int
    steps_planned: int
    kind: str = PLAIN
    lease: bytes | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    runtime: str = ""

    def pack(self, payload: bytes | None = None) -> bytes:
        """The body of ``begin``; with ``payload`` where that fits, without it the probe 'where are we?'."""
        return pack(
            {
                "i": self.incarnation,
                **self.base.to_body(),
                "c": self.codec,
                "s": self.size,
                "h": self.sha256,
                "f": self.fingerprint,
                "x": self.num_examples,
                "d": self.steps_done,
                "p": self.steps_planned,
                "k": None if self.kind == PLAIN else self.kind,
                "l": self.lease,
                "m": _nested(self.metrics) or None,
                "r": self.runtime or None,
                "b": payload,
            }
        )

    @classmethod
    def unpack(cls, body: bytes) -> "tuple[UpdateHeader, bytes | None]":
        """Read ``begin``: the header, and the payload if it is there.

        Raises:
            MessageError: not such a body; a payload that has not the size or hash of its header.
        """
        fields = unpack(body, limit=MAX_BEGIN_BYTES)
        header = cls(
            incarnation=fields.octets("i", length=INCARNATION_BYTES),
            base=VersionId.from_body(fields),
            codec=fields.text("c", longest=96),
            size=fields.integer("s", high=MAX_UPDATE_BYTES),
            sha256=fields.octets("h", length=32),
            fingerprint=fields.octets("f", length=FINGERPRINT_BYTES),
            num_examples=fields.integer("x", low=1),
            steps_done=fields.integer("d"),
            steps_planned=fields.integer("p", low=1),
            kind=fields.text("k", longest=16, default=PLAIN),
            lease=fields.maybe("l", lambda key: fields.octets(key, length=LEASE_BYTES)),
            metrics=_flat(fields.group("m")) if "m" in fields else {},
            runtime=fields.text("r", longest=LONGEST_RUNTIME, default=""),
        )
        if _STRANGE.search(header.runtime):
            raise MessageError("a runtime's name of other characters than A-Z a-z 0-9 . _ -")
        if header.steps_done > header.steps_planned:
            raise MessageError("more steps done than planned")
        payload = fields.maybe("b", lambda key: fields.octets(key, longest=INLINE_BYTES))
        if payload is not None and (
            len(payload) != header.size or hashlib.sha256(payload).digest() != header.sha256
        ):
            raise MessageError("a payload that is not the one its header names")
        return header, payload


def with_payload(packed: bytes, payload: bytes) -> bytes:
    """The body of ``begin`` with its payload, of what ``UpdateHeader.pack()`` gave without: the bytes that
    ``pack(payload)`` gives, and nothing is read anew.

    Raises:
        MessageError: not what that gave.
    """
    if not packed or packed[0] & 0xF0 != _FIXMAP:
        raise MessageError("a packed header begins with its number of keys")
    count = (packed[0] & 0x0F) + 1
    head = bytes([_FIXMAP | count]) if count <= 0x0F else _MAP16 + count.to_bytes(2, "big")
    return b"".join((head, packed[1:], pack({"b": payload})[1:]))


def runtime_label(name: str) -> str:
    """A runtime or a trainer's class as headers carry it: 16 of ``A-Z a-z 0-9 . _ -``, others are ``_``."""
    return _STRANGE.sub("_", name)[:LONGEST_RUNTIME]


def update_hash(update_id: bytes, header: UpdateHeader | bytes) -> bytes:
    """What an update id is bound to: sha256 over the id and the whole header (which names its payload);
    ``header`` may be what it packs to."""
    if len(update_id) != UPDATE_ID_BYTES:
        raise MessageError("an update id has 16 bytes")
    packed = header if isinstance(header, bytes) else header.pack()
    return hashlib.sha256(update_id + packed).digest()


def _nested(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    nested: dict[str, dict[str, float]] = {}
    for name, value in compact(metrics).items():
        group, _, metric = name.partition(".")
        nested.setdefault(group, {})[metric] = value
    return nested


def _flat(fields: Fields) -> dict[str, float]:
    return {
        f"{group}.{metric}": value
        for group in ("before", "after")
        if group in fields
        for metric, value in fields.numbers(group, most=MAX_METRICS, largest=MAX_NUMBER).items()
    }
