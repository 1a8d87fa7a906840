"""The topic tree of a fleet, built and read in one place.

``F`` fleet, ``T`` task, ``D`` device, ``U`` update id, ``A`` blob address, ``S`` chunk size, ``I`` chunk
index, ``O`` byte offset. At most 7 slashes and 255 bytes, so that hosted brokers' limits hold.
"""

import functools
import re
from dataclasses import dataclass

from fl_protocol.errors import TopicError

__all__ = [
    "DEVICE_NAME",
    "UPDATE_ID_BYTES",
    "BeginTopic",
    "BlobTopic",
    "ChunkTopic",
    "DeviceTopic",
    "FleetTopics",
    "ReceiptTopic",
    "Topic",
    "blob_name",
    "valid_name",
]

ROOT = "fl1"
UPDATE_ID_BYTES = 16
DEVICE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A device id, and any fleet or task name. The device id is also user name, client id, certificate name."""
_BASE32_ID = re.compile(r"[a-z2-7]{26}")
_BLOB_NAME = re.compile(r"[a-z2-7]{26}\.[1-9][0-9]{0,14}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")
OFFSET_UNIT = 4096
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
# Python reads base 32 with digits of its own; and two characters at a time are quick to write.
_DIGITS = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_SHIFTS = range(120, -1, -10)


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """``up/D/get``, ``up/D/event``, ``state/D``, ``down/D/command``, ``down/D/task``: ``kind`` says which."""

    kind: str
    device: str


@dataclass(frozen=True, slots=True)
class BeginTopic:
    """``up/D/begin/U``."""

    device: str
    update_id: bytes


@dataclass(frozen=True, slots=True)
class ChunkTopic:
    """``up/D/chunk/U/O``: raw bytes of an update's payload from byte ``offset`` on."""

    device: str
    update_id: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class ReceiptTopic:
    """``down/D/update/U``."""

    device: str
    update_id: bytes


@dataclass(frozen=True, slots=True)
class BlobTopic:
    """``blob/A.S/I`` for everyone, or ``down/D/blob/A.S/I`` for one device."""

    address: str
    chunk_bytes: int
    index: int
    device: str | None = None


@dataclass(frozen=True, slots=True)
class NamedTopic:
    """``task/T`` (kind ``task``) and ``coordinator`` (kind ``coordinator``)."""

    kind: str
    name: str = ""


Topic = DeviceTopic | BeginTopic | ChunkTopic | ReceiptTopic | BlobTopic | NamedTopic


def valid_name(name: str) -> bool:
    """Whether ``name`` may name a device, a fleet or a task."""
    return DEVICE_NAME.fullmatch(name) is not None and not name.startswith(".")


@functools.lru_cache(maxsize=256)
def blob_name(address: str, chunk_bytes: int) -> str:
    """``A.S``: the level of a blob in a topic; one text for all agents of a process."""
    return f"{address}.{chunk_bytes}"


def encode_id(update_id: bytes) -> str:
    """An update id in a topic: lower-case base32, 26 characters for 128 bits."""
    bits = int.from_bytes(update_id, "big") << 2
    return "".join([_PAIRS[bits >> shift & 1023] for shift in _SHIFTS])


def decode_id(text: str) -> bytes:
    """The update id of a topic level; raises TopicError."""
    if _BASE32_ID.fullmatch(text) is None:
        raise TopicError("an update id is 26 characters of lower-case base32")
    bits = int(text.translate(_DIGITS), 32)
    if bits & 3:
        raise TopicError("an update id has one spelling only")
    return (bits >> 2).to_bytes(UPDATE_ID_BYTES, "big")


class FleetTopics:
    """All topics of one fleet.

    Raises:
        TopicError: the fleet's name, or any other name given, is not ``[A-Za-z0-9._-]{1,64}``.
    """

    @classmethod
    @functools.lru_cache(maxsize=16)
    def of(cls, fleet: str) -> "FleetTopics":
        """The topics of a fleet, one object for all agents of a process."""
        return cls(fleet)

    def __init__(self, fleet: str) -> None:
        self.fleet = _checked(fleet)
        self.prefix = f"{ROOT}/{fleet}/"

    @property
    def coordinator(self) -> str:
        """The coordinator's presence: session, term, inventory marker; challenge and answer."""
        return _shared_topic(self.prefix, "coordinator")

    def task(self, task: str = "main") -> str:
        """The retained, signed task manifest."""
        return _shared_topic(self.prefix, f"task/{_checked(task)}")

    def blob(self, name: str, index: int) -> str:
        """Chunk ``index`` of a blob, retained; ``name`` from ``blob_name``."""
        return _blob_topic(self.prefix, name, index)

    def begin(self, device: str, update_id: bytes) -> str:
        """An update's header, and its payload where that is small."""
        return f"{self.prefix}up/{_checked(device)}/begin/{encode_id(update_id)}"

    def chunk(self, device: str, update_id: bytes, offset: int) -> str:
        """Raw bytes of an update's payload."""
        return f"{self.prefix}up/{_checked(device)}/chunk/{encode_id(update_id)}/{offset}"

    def get(self, device: str) -> str:
        """A request for the manifest or a blob chunk."""
        return f"{self.prefix}up/{_checked(device)}/get"

    def event(self, device: str) -> str:
        """What a device reports: command results, errors, evidence."""
        return f"{self.prefix}up/{_checked(device)}/event"

    def state(self, device: str) -> str:
        """A device's birth, and its will."""
        return f"{self.prefix}state/{_checked(device)}"

    def receipt(self, device: str, update_id: bytes) -> str:
        """The coordinator's word on one update."""
        return f"{self.prefix}down/{_checked(device)}/update/{encode_id(update_id)}"

    def command(self, device: str) -> str:
        """Signed commands to one device."""
        return f"{self.prefix}down/{_checked(device)}/command"

    def task_for(self, device: str) -> str:
        """The manifest, in answer to one device's ``get``."""
        return f"{self.prefix}down/{_checked(device)}/task"

    def blob_for(self, device: str, name: str, index: int) -> str:
        """A chunk, in answer to one device's ``get``."""
        return f"{self.prefix}down/{_checked(device)}/blob/{_checked_blob(name, index)}"

    def device_filters(self, device: str, task: str = "main") -> tuple[str, ...]:
        """What a device subscribes to at every connect, besides the chunks it is fetching."""
        return (f"{self.prefix}down/{_checked(device)}/#", self.task(task), self.coordinator)

    def coordinator_filters(self) -> tuple[str, ...]:
        """What the coordinator subscribes to at every connect."""
        return (f"{self.prefix}up/#", f"{self.prefix}state/+", self.coordinator)

    def parse(self, topic: str) -> Topic:
        """Read a topic of this fleet.

        Raises:
            TopicError: another fleet's, or no topic of the tree.
        """
        if not topic.startswith(self.prefix):
            raise TopicError("a topic outside this fleet")
        match topic[len(self.prefix) :].split("/"):
            case ["coordinator"]:
                return NamedTopic("coordinator")
            case ["task", name]:
                return NamedTopic("task", _checked(name))
            case ["blob", name, index]:
                return _shared_blob(name, index)
            case ["state", device]:
                return DeviceTopic("state", _checked(device))
            case ["up", device, "begin", update_id]:
                return BeginTopic(_checked(device), decode_id(update_id))
            case ["up", device, "chunk", update_id, offset]:
                return _chunk(device, update_id, offset)
            case ["up", device, "get" | "event" as kind]:
                return DeviceTopic(kind, _checked(device))
            case ["down", device, "update", update_id]:
                return ReceiptTopic(_checked(device), decode_id(update_id))
            case ["down", device, "command" | "task" as kind]:
                return DeviceTopic(kind, _checked(device))
            case ["down", device, "blob", name, index]:
                return _blob(name, index, _checked(device))
        raise TopicError("a topic that is not in the tree")


def _checked(name: str) -> str:
    if not valid_name(name):
        raise TopicError(f"{name[:64]!r} is not a name: use 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


def _checked_blob(name: str, index: int) -> str:
    if _BLOB_NAME.fullmatch(name) is None or index < 0:
        raise TopicError(f"{name[:64]!r}, chunk {index}, names no chunk of a blob")
    return f"{name}/{index}"


def _integer(text: str, what: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise TopicError(f"{what} in a topic is a decimal number")
    return int(text)


def _chunk(device: str, update_id: str, offset: str) -> ChunkTopic:
    start = _integer(offset, "an offset")
    if start % OFFSET_UNIT:
        raise TopicError(f"a chunk's offset is a multiple of {OFFSET_UNIT}")
    return ChunkTopic(_checked(device), decode_id(update_id), start)


@functools.lru_cache(maxsize=64)
def _shared_topic(prefix: str, rest: str) -> str:
    """Where many agents share a process, each subscribes to the same topics."""
    return prefix + rest


@functools.lru_cache(maxsize=256)
def _blob_topic(prefix: str, name: str, index: int) -> str:
    """Where many agents share a process, each subscribes to the same topics."""
    return f"{prefix}blob/{_checked_blob(name, index)}"


@functools.lru_cache(maxsize=256)
def _shared_blob(name: str, index: str) -> BlobTopic:
    """Where many agents share a process, each reads the same topics."""
    return _blob(name, index, None)


def _blob(name: str, index: str, device: str | None) -> BlobTopic:
    address, _, chunk_bytes = name.partition(".")
    if _BASE32_ID.fullmatch(address) is None:
        raise TopicError("a blob's address is 26 characters of lower-case base32")
    return BlobTopic(address, _integer(chunk_bytes, "a chunk size"), _integer(index, "a chunk index"), device)
