"""A book of runs: the learning curve of each, a line of JSON, so that a bench that was interrupted goes on.

Several processes may write to one book at a time; each reads it when it begins.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from hil.bench.learning_curve import LearningCurve

__all__ = ["RunBook", "RunKey"]

RunKey: TypeAlias = Mapping[str, str | int]
"""What names a run; no name may be ``groups`` or ``points``."""


class RunBook:
    """The runs in the file ``path``, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._curves = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")  # a run was ended while it wrote its line
        for line in whole.splitlines():
            body = json.loads(line)
            curve = LearningCurve.from_body({name: body.pop(name) for name in ("groups", "points")})
            self._curves[_name(body)] = curve

    def find(self, key: RunKey) -> LearningCurve | None:
        """The curve of a run, if it was made."""
        return self._curves.get(_name(key))

    def keep(self, key: RunKey, curve: LearningCurve) -> None:
        """Write a run down."""
        self._curves[_name(key)] = curve
        line = json.dumps({**key, **curve.to_body()}, separators=(",", ":"))
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")


def _name(key: RunKey) -> frozenset[tuple[str, str | int]]:
    return frozenset(key.items())
