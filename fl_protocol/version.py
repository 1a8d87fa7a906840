"""The identity of a model version."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_protocol.fields import Fields

__all__ = ["DIGEST_BYTES", "VersionId"]

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionId:
    """Version ``number`` of ``epoch``, bound to the state it names.

    ``digest`` is the first 16 bytes of the sha256 of the coordinator's state file of that version: two
    histories that diverged (a coordinator restored from a backup) never share it.
    """

    epoch: int
    number: int
    digest: bytes

    def to_body(self) -> Mapping[str, Any]:
        """The keys that travel: ``e`` epoch, ``n`` number, ``g`` digest."""
        return {"e": self.epoch, "n": self.number, "g": self.digest}

    @classmethod
    def from_body(cls, fields: Fields) -> "VersionId":
        """Read the keys of ``to_body``; raises MessageError."""
        return cls(
            epoch=fields.integer("e"),
            number=fields.integer("n"),
            digest=fields.octets("g", length=DIGEST_BYTES),
        )

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number} ({self.digest.hex()[:8]})"
