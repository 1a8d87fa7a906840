"""Every error of Lichen, one tree.

    LichenError
    +-- ConfigError            what a person wrote cannot be used; lists every fault at once
    +-- ProtocolError          bytes from the wire that break the protocol
    |   +-- TopicError         a topic that is not ours
    |   +-- MessageError       a message body: not msgpack, too large, a field missing or ill-typed
    |   +-- SignatureError     not signed by a key that is trusted here
    +-- LayoutError            tensors that do not fit the layout they are said to have
    +-- CodecError             an unknown codec, or a payload that does not decode
    +-- AggregatorError        an aggregation rule that fails: the rule's fault, and no update's
    +-- ArtifactError          a training artifact that cannot be opened or built
    |   +-- RuntimeUnavailable the ML runtime is not installed, or fails its golden step here
    +-- StorageError           the disk: full, damaged, locked by another process
    +-- TransportError         the broker: unreachable, refusing, too slow

The class says what happened, the message where, ``hint`` what to do about it, ``retryable`` whether
the same call may succeed later. A rejected update is data (a refusal with a reason), never an error.
"""

from collections.abc import Sequence

__all__ = [
    "AggregatorError",
    "ArtifactError",
    "CodecError",
    "ConfigError",
    "LayoutError",
    "LichenError",
    "MessageError",
    "ProtocolError",
    "RuntimeUnavailable",
    "SignatureError",
    "StorageError",
    "TopicError",
    "TransportError",
]


class LichenError(Exception):
    """Base of all errors that Lichen raises on purpose."""

    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class ConfigError(LichenError):
    """A configuration that cannot be used; ``faults`` holds one sentence per fault."""

    def __init__(self, message: str, *, faults: Sequence[str] = (), hint: str = "") -> None:
        super().__init__("\n  ".join([message, *faults]), hint=hint)
        self.faults = tuple(faults)


class ProtocolError(LichenError):
    """Bytes that break the wire protocol. Counted and answered, never trusted."""


class TopicError(ProtocolError):
    """A topic outside the tree of this fleet."""


class MessageError(ProtocolError):
    """A message body that is not what its topic promises."""


class SignatureError(ProtocolError):
    """A signature that does not hold, or a key that is not trusted here."""


class LayoutError(LichenError):
    """Tensors that do not fit their layout."""


class CodecError(LichenError):
    """An unknown codec, or a payload that does not decode under its header."""


class AggregatorError(LichenError):
    """An aggregation rule that raises, or gives what is no aggregate. It is the rule's fault: no update is
    set aside for it."""


class ArtifactError(LichenError):
    """A training artifact that cannot be opened, verified or built."""


class RuntimeUnavailable(ArtifactError):
    """An ML runtime that is not installed, or that fails the golden step on this machine."""


class StorageError(LichenError):
    """A disk that is full, damaged, read-only, or locked by another process."""


class TransportError(LichenError):
    """A broker that cannot be reached or will not serve us."""

    retryable = True
