"""TOML as text: tables of plain values, and files whose top keys change."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["overlaid", "toml_text", "with_values"]

Tables = Mapping[str, Mapping[str, Any]]


def overlaid(tables: Tables, others: Tables) -> Tables:
    """Tables of a configuration, with the keys of others added or replaced; ``""`` is the top."""
    return {name: {**tables.get(name, {}), **others.get(name, {})} for name in {**tables, **others}}


def toml_text(tables: Tables) -> str:
    """Tables as text; the top, ``""``, comes first where there is one."""
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]"] if name else []
        # JSON's texts, numbers, booleans and lists are TOML's too.
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """A file's text with top keys added or replaced; each stands on one line of its own."""
    top, bracket, tables = text.partition("\n[")
    kept = [line for line in top.splitlines() if line.partition("=")[0].strip() not in values]
    kept += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(kept) + "\n" + (f"{bracket}{tables}" if bracket else "")
