"""Reading message bodies: bounded msgpack, and typed fields checked by hand.

Unknown keys are ignored, so that a newer peer can say more. Everything that is read is checked: type,
range, length. Integers stay below 2**53, so that every language reads them alike.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgpack

from fl_protocol.errors import MessageError

__all__ = ["MAX_INTEGER", "MAX_NUMBER", "Fields", "compact", "pack", "unpack"]

T = TypeVar("T")

MAX_INTEGER = (1 << 53) - 1
MAX_NUMBER = (2.0 - 2.0**-23) * 2.0**127
"""The largest finite float32: what a number that is written as one can be at most, in magnitude."""
MAX_MAP_ITEMS = 256
MAX_ARRAY_ITEMS = 4096
MAX_NAME_CHARS = 128
_TEXT = frozenset({str})


def pack(body: Mapping[str, Any]) -> bytes:
    """Encode a message body; floats travel as float32, keys with value ``None`` are left out.

    Raises:
        MessageError: a number is too large to travel.
    """
    present = {key: value for key, value in body.items() if value is not None}
    try:
        packed: bytes = msgpack.packb(present, use_single_float=True, use_bin_type=True)
    except OverflowError as error:
        raise MessageError(f"a number that is too large for a message: {error}") from None
    return packed


def compact(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers as they travel: by name, whole ones as integers, others rounded to float32, and those that
    are not finite left out (a loss that diverged must not make a message unreadable)."""
    compacted: dict[str, float] = {}
    for name, value in sorted(numbers.items()):
        number = float(value)
        if not _whole(number):
            number = _float32(number)
        if math.isfinite(number):
            # Asked again after the rounding: what was read packs to the bytes it came from.
            compacted[name] = int(number) if _whole(number) else number
    return compacted


def _whole(number: float) -> bool:
    return number.is_integer() and abs(number) <= MAX_INTEGER


def _float32(number: float) -> float:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        return math.inf
    return rounded


def unpack(payload: bytes, *, limit: int) -> "Fields":
    """Decode a message body of at most ``limit`` bytes.

    Raises:
        MessageError: too large, not msgpack, trailing bytes, or not a map with text keys.
    """
    if len(payload) > limit:
        raise MessageError(f"a message of {len(payload)} bytes, more than the {limit} allowed here")
    try:
        body = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            use_list=True,
            max_str_len=limit,
            max_bin_len=limit,
            max_ext_len=0,
            max_map_len=MAX_MAP_ITEMS,
            max_array_len=MAX_ARRAY_ITEMS,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise MessageError(f"not a msgpack message: {error}") from None
    return Fields(body)


class Fields:
    """A decoded map whose entries are read with their type, range and length stated.

    Raises:
        MessageError: from every reader, naming the key, if the entry is missing (and no default was
            given) or is not what was asked for.
    """

    def __init__(self, body: object) -> None:
        if not isinstance(body, dict) or not _TEXT.issuperset(map(type, body)):
            raise MessageError("a message body is a map with text keys")
        self._body: dict[str, Any] = body

    def __contains__(self, key: str) -> bool:
        return self._body.get(key) is not None

    def integer(self, key: str, *, low: int = 0, high: int = MAX_INTEGER, default: int | None = None) -> int:
        """An integer in ``[low, high]``."""
        value = self._value(key, default)
        if type(value) is not int or not low <= value <= high:
            raise MessageError(f"{key!r} must be an integer from {low} to {high}")
        return value

    def number(
        self, key: str, *, low: float = -math.inf, high: float = math.inf, default: float | None = None
    ) -> float:
        """A finite number in ``[low, high]``; where it is an integer, below 2**53 as all of them."""
        value = self._value(key, default)
        whole = type(value) is int and -MAX_INTEGER <= value <= MAX_INTEGER
        if not (whole or (type(value) is float and math.isfinite(value))) or not low <= value <= high:
            raise MessageError(f"{key!r} must be a finite number from {low} to {high}")
        return float(value)

    def text(self, key: str, *, longest: int = 128, default: str | None = None) -> str:
        """A text of at most ``longest`` characters."""
        value = self._value(key, default)
        if not isinstance(value, str) or len(value) > longest:
            raise MessageError(f"{key!r} must be a text of at most {longest} characters")
        return value

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        """A boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise MessageError(f"{key!r} must be true or false")
        return value

    def octets(self, key: str, *, length: int | None = None, longest: int = 1 << 20) -> bytes:
        """A byte string of exactly ``length``, or at most ``longest``, bytes."""
        value = self._value(key, None)
        wrong = len(value) != length if length is not None and isinstance(value, bytes) else False
        if not isinstance(value, bytes) or wrong or len(value) > longest:
            wanted = f"exactly {length}" if length is not None else f"at most {longest}"
            raise MessageError(f"{key!r} must be a byte string of {wanted} bytes")
        return value

    def group(self, key: str) -> "Fields":
        """A nested map."""
        return Fields(self._value(key, None))

    def mapping(self, key: str, *, most: int = MAX_MAP_ITEMS) -> "dict[str, Fields]":
        """A map of at most ``most`` names to nested maps."""
        group = self.group(key)
        if len(group._body) > most:
            raise MessageError(f"{key!r} must be a map of at most {most} entries")
        return {name: group.group(name) for name in group._body}

    def array(self, key: str, *, most: int = MAX_ARRAY_ITEMS) -> Sequence[Any]:
        """A list of at most ``most`` entries; the caller checks each."""
        value = self._value(key, None)
        if not isinstance(value, list) or len(value) > most:
            raise MessageError(f"{key!r} must be a list of at most {most} entries")
        return value

    def maybe(self, key: str, read: Callable[[str], T]) -> T | None:
        """``read(key)``, or ``None`` where the key is absent."""
        return read(key) if key in self else None

    def numbers(self, key: str, *, most: int = 32, largest: float = math.inf) -> dict[str, float]:
        """A map of at most ``most`` names, of at most 128 characters, to finite numbers of at most
        ``largest`` in magnitude."""
        group = self.group(key)
        if len(group._body) > most or any(len(name) > MAX_NAME_CHARS for name in group._body):
            raise MessageError(
                f"{key!r} must be a map of at most {most} names of {MAX_NAME_CHARS} characters"
            )
        return {name: group.number(name, low=-largest, high=largest) for name in group._body}

    def _value(self, key: str, default: Any) -> Any:
        value = self._body.get(key)
        if value is None:
            value = default
        if value is None:
            raise MessageError(f"{key!r} is missing")
        return value
