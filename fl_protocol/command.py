"""Commands to one device: signed, numbered, and valid for a stated time after they arrive."""

from dataclasses import dataclass

from fl_protocol.errors import MessageError
from fl_protocol.fields import pack, unpack
from fl_protocol.update import LEASE_BYTES
from fl_protocol.version import VersionId

__all__ = ["COMMANDS", "MAX_COMMAND_BYTES", "Command"]

MAX_COMMAND_BYTES = 4 << 10
COMMANDS = ("train", "pause", "resume", "restate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command.

    ``(term, sequence)`` grows with every command of a fleet: a device obeys none twice, nor an older one
    after a newer. ``train`` carries ``lease``, ``version`` and ``deadline_s``, the seconds the lease is
    held from its arrival. ``restate`` asks for the birth message, and with ``evidence`` for the newest
    verified manifest too.
    """

    kind: str
    device: str
    term: int
    sequence: int
    lease: bytes | None = None
    version: VersionId | None = None
    deadline_s: float = 0.0
    evidence: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """A newer command has the greater one."""
        return self.term, self.sequence

    def pack(self) -> bytes:
        """The body to be signed."""
        return pack(
            {
                "k": self.kind,
                "d": self.device,
                "t": self.term,
                "q": self.sequence,
                "l": self.lease,
                "v": self.version.to_body() if self.version else None,
                "w": self.deadline_s or None,
                "p": self.evidence or None,
            }
        )

    @classmethod
    def unpack(cls, body: bytes) -> "Command":
        """Read a command's body; raises MessageError. Says nothing about its signature."""
        fields = unpack(body, limit=MAX_COMMAND_BYTES)
        command = cls(
            kind=fields.text("k", longest=16),
            device=fields.text("d", longest=64),
            term=fields.integer("t"),
            sequence=fields.integer("q"),
            lease=fields.maybe("l", lambda key: fields.octets(key, length=LEASE_BYTES)),
            version=fields.maybe("v", lambda key: VersionId.from_body(fields.group(key))),
            deadline_s=fields.number("w", low=0.0, high=7 * 86400.0, default=0.0),
            evidence=fields.flag("p", default=False),
        )
        if command.kind not in COMMANDS:
            raise MessageError(f"an unknown command {command.kind!r}")
        if command.kind == "train" and (command.lease is None or command.version is None):
            raise MessageError("a train command names its lease and version")
        return command
