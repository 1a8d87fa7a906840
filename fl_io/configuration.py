"""Configuration files: TOML into frozen dataclasses, every fault found at once, with file and line.

A field's type is its rule: ``bool``, ``int``, ``float`` (an integer will do), ``str``, ``Path`` (relative to
the file's folder), ``tuple[str, ...]``, ``X | None``, another such dataclass for a table, or a ``Mapping``
from ``str`` to such dataclasses for a table of tables with names of the user's. A field without a default
must be there; a key without a field is a fault.
"""

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fl_protocol.errors import ConfigError

__all__ = ["check_configuration", "check_table", "read_configuration"]

T = TypeVar("T")

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", Path: "a path"}


def read_configuration(path: Path, kind: type[T]) -> T:
    """Read ``path`` into the dataclass ``kind``.

    Raises:
        ConfigError: the file cannot be read or is not TOML, or keys are unknown, missing or ill-typed,
            or ``kind`` refuses the values (a ``ValueError`` of its ``__post_init__``).
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="is this the right path, and the right user?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file", faults=[str(error)]) from None
    return check_configuration(table, kind, path=path, text=text)


def check_configuration(
    table: dict[str, Any], kind: type[T], *, path: Path, text: str = "", within: tuple[str, ...] = ()
) -> T:
    """The dataclass ``kind`` of a table as TOML gives it; ``path`` and ``text`` are the file it is from, in
    which it stands as the table ``within``.

    Raises:
        ConfigError: as ``read_configuration``.
    """
    reading = _Reading(path, text)
    value = reading.table(kind, table, within)
    if reading.faults:
        count = len(reading.faults)
        raise ConfigError(f"{path} has {count} fault{'s' if count > 1 else ''}:", faults=reading.faults)
    return typing.cast(T, value)


def check_table(table: dict[str, Any], kind: type[T], *, path: Path, within: tuple[str, ...]) -> T:
    """As ``check_configuration``, of a table that stands as ``within`` in the file ``path``, if that is one.

    Raises:
        ConfigError: as ``read_configuration``.
    """
    if not path.is_file():
        return check_configuration(table, kind, path=path)
    text = path.read_text(encoding="utf-8")
    return check_configuration(table, kind, path=path, text=text, within=within)


class _Reading:
    """One pass over one file, collecting faults."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()
        self.faults: list[str] = []

    def table(self, kind: type[Any], table: dict[str, Any], where: tuple[str, ...]) -> Any:
        hints = typing.get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        faults_before = len(self.faults)
        for key in (key for key in table if key not in fields):
            import difflib  # only a faulty file needs it, and the agent's memory is counted

            near = difflib.get_close_matches(key, fields, 1)
            self._fault((*where, key), "unknown key" + (f", did you mean {near[0]!r}?" if near else ""))
        values = {}
        for name, field in fields.items():
            if name in table:
                values[name] = self._value(hints[name], table[name], (*where, name))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self._fault((*where, name), "missing")
        if len(self.faults) > faults_before:
            return None
        try:
            return kind(**values)
        except (ValueError, ConfigError) as error:
            self._fault(where, str(error))
            return None

    def _value(self, hint: Any, value: Any, where: tuple[str, ...]) -> Any:
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if isinstance(value, dict):
                return self.table(hint, value, where)
            return self._fault(where, "must be a table")
        if typing.get_origin(hint) is Mapping:
            kind = typing.get_args(hint)[1]
            if isinstance(value, dict) and all(isinstance(table, dict) for table in value.values()):
                return {name: self.table(kind, table, (*where, name)) for name, table in value.items()}
            return self._fault(where, "must be a table of tables")
        if typing.get_origin(hint) is tuple:
            if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
                return tuple(value)
            return self._fault(where, "must be a list of texts")
        if hint is float and type(value) is int and abs(value) < 1 << 1000:
            return float(value)
        if hint is Path and isinstance(value, str):
            return (self._path.parent / Path(value).expanduser()).absolute()
        if type(value) is not hint or (hint is float and not math.isfinite(value)):
            return self._fault(where, f"must be {_WORDS.get(hint, hint)}, not {value!r}")
        return value

    def _fault(self, where: tuple[str, ...], what: str) -> None:
        name = ".".join(where)
        self.faults.append(f"{self._path.name}:{self._line(where)}: {name or 'the file'}: {what}")

    def _line(self, where: tuple[str, ...]) -> int:
        """The line a key stands on, or that of the innermost table around it; 1 where there is none."""
        table: tuple[str, ...] = ()
        best, depth = 1, 0
        for number, line in enumerate(self._lines, 1):
            if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
                path = table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            elif key := re.match(r"\s*([\w\"'.-]+)\s*=", line):
                path = (*table, *(part.strip("\"'") for part in key[1].split(".")))
            else:
                continue
            if path == where[: len(path)] and len(path) > depth:
                best, depth = number, len(path)
        return best
