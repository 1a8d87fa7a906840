"""Codec specifications: the short text that names a codec, as ``eden(bits=1,keep=0.25)``.

Needs no array library, so that a program which only forwards payloads can read it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_protocol.errors import CodecError

__all__ = ["CodecSpec"]

_FORM = re.compile(r"([a-z][a-z0-9_]{0,31})(?:\(([^()]*)\))?", re.ASCII)
_OPTION = re.compile(r"([a-z][a-z0-9_]{0,31})\s*=\s*(\d+(?:\.\d+)?(?:e[+-]?\d{1,2})?)", re.ASCII)
_MAX_CHARS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """A codec's name and its numeric options; ``str()`` gives a text that parses to an equal spec."""

    name: str
    options: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "CodecSpec":
        """Read ``name`` or ``name(option=number, ...)``; numbers are decimal and not negative.

        Raises:
            CodecError: the text is not of that form, or an option stands twice.
        """
        match = _FORM.fullmatch(text.strip()) if len(text) <= _MAX_CHARS else None
        if match is None:
            raise CodecError(
                f"{text[:_MAX_CHARS]!r} names no codec", hint="write it as eden(bits=1,keep=0.25)"
            )
        options: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in (match[2] or "").split(","))):
            option = _OPTION.fullmatch(part)
            if option is None:
                raise CodecError(f"codec option {part!r} is not of the form name=number")
            if option[1] in options:
                raise CodecError(f"codec option {option[1]!r} stands twice in {text!r}")
            options[option[1]] = float(option[2])
        return cls(name=match[1], options=options)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        inside = ",".join(f"{name}={_number(value)}" for name, value in sorted(self.options.items()))
        return f"{self.name}({inside})"


def _number(value: float) -> str:
    """The shortest text that reads back as exactly ``value``: a payload's length depends on it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
