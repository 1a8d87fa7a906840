"""Codec specifications: the short text that names a codec, as ``eden(bits=1, keep=0.25)``.

Needs no array library, so that a program which only forwards payloads can read it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_protocol.errors import CodecError

__all__ = ["CodecSpec"]

_FORM = re.compile(r"([a-z][a-z0-9_]{0,31})(?:\(([^()]*)\))?")
_MAX_CHARS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """A codec's name and its numeric options."""

    name: str
    options: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "CodecSpec":
        """Read ``name`` or ``name(option=number, ...)``.

        Raises:
            CodecError: the text is not of that form, or an option stands twice.
        """
        match = _FORM.fullmatch(text.strip()) if len(text) <= _MAX_CHARS else None
        if match is None:
            raise CodecError(
                f"{text[:_MAX_CHARS]!r} names no codec", hint="write it as eden(bits=1, keep=0.25)"
            )
        options: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in (match[2] or "").split(","))):
            name, _, number = (piece.strip() for piece in part.partition("="))
            try:
                value = float(number)
            except ValueError:
                raise CodecError(f"codec option {part!r} is not of the form name=number") from None
            if name in options or not re.fullmatch(r"[a-z]\w*", name):
                raise CodecError(f"codec option {name!r} stands twice or is no name")
            options[name] = value
        return cls(name=match[1], options=options)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        inside = ",".join(f"{name}={value:g}" for name, value in sorted(self.options.items()))
        return f"{self.name}({inside})"
