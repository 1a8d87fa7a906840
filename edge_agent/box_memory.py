"""What an outbox knows of its own file: it is the only one that writes there, and need not ask for it again.

Nothing here is more than a copy. Where a commit fails all of it is forgotten, and asked of the file anew.
"""

from dataclasses import dataclass, field

from fl_protocol.version import VersionId

__all__ = ["LARGEST_FACT", "BoxMemory"]

LARGEST_FACT = 1 << 16
"""Bytes of the largest fact that is held: what a codec left out of an update may be as large as a model."""


@dataclass(slots=True)
class BoxMemory:
    """One box of an outbox file; what is ``None``, or not there, is not known.

    ``sequence`` is the newest row of the ledger, 0 before the first, ``used_bytes`` the size of what waits,
    headers and all, ``residual_bytes`` that of the codec's state. ``facts`` says of a fact that there is none
    by ``None``. ``asked`` is the base that was asked about last, and whether an update was made from it,
    ``newest`` the newest base that one was made from. ``sent_next`` is an update's payload that was put in
    and not read yet: it is sent at once, as a rule.
    """

    sequence: int | None = None
    used_bytes: int | None = None
    residual_bytes: int | None = None
    facts: dict[str, bytes | None] = field(default_factory=dict)
    asked: tuple[VersionId, bool] | None = None
    newest: VersionId | None = None
    has_device_state: bool | None = None
    sent_next: tuple[bytes, bytes] | None = None

    def note_fact(self, key: str, value: bytes | None) -> None:
        """Know a fact, if it is not too large."""
        if value is None or len(value) <= LARGEST_FACT:
            self.facts[key] = value
        else:
            self.facts.pop(key, None)

    def take_payload(self, update_id: bytes, start: int, end: int) -> bytes | None:
        """The whole payload of the newest update, once; None where it is not here, or a part is wanted."""
        if self.sent_next is None or self.sent_next[0] != update_id:
            return None
        _, payload = self.sent_next
        if start or end != len(payload):
            return None
        self.sent_next = None
        return payload

    def forget_payload(self, update_id: bytes) -> None:
        """An update has gone."""
        if self.sent_next is not None and self.sent_next[0] == update_id:
            self.sent_next = None
