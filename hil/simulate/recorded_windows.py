"""Windows in which devices were on, as somebody recorded them: a CSV of ``device,on_s,off_s``."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from fl_protocol.errors import ConfigError
from hil.simulate.device_stream import DeviceStream

__all__ = ["Recorded", "read_windows"]

_HEADER = "device,on_s,off_s"
MOST_ROWS = 1_000_000
MOST_CHARACTERS = 200
_FAULTS_SHOWN = 10

Windows: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The windows of a CSV ``file``, over and over again every ``every_s`` seconds (0: when its last ends).

    Devices are dealt the recorded ones in the order of their numbers, and again from the first where there
    are more; ``spread_s`` shifts each device's course by up to so many seconds, so that copies are not alike.

    Raises:
        ValueError: ``every_s`` ends before the last window.
        ConfigError: see ``read_windows``.
    """

    file: Path
    every_s: float = 0.0
    spread_s: float = 0.0
    courses: tuple[Windows, ...] = field(init=False)

    def __post_init__(self) -> None:
        courses = tuple(read_windows(self.file).values())
        last = max(off for course in courses for _, off in course)
        if self.every_s and self.every_s < last:
            raise ValueError(f"every_s = {self.every_s:g} ends before the last window; nearest is {last:g}")
        if self.spread_s < 0:
            raise ValueError(f"spread_s = {self.spread_s:g} is negative; nearest is 0")
        object.__setattr__(self, "courses", courses)
        object.__setattr__(self, "every_s", self.every_s or last)

    def windows(self, device: int, seed: int) -> Iterator[tuple[float, float]]:
        """See ``Availability.windows``."""
        course = self.courses[device % len(self.courses)]
        if course == ((0.0, self.every_s),):
            yield 0.0, math.inf
            return
        yield from _joined(self._repeated(course, device, seed))

    def _repeated(self, course: Windows, device: int, seed: int) -> Iterator[tuple[float, float]]:
        shift = DeviceStream(seed, device, "recorded").uniform(0, self.spread_s) if self.spread_s else 0.0
        # A shift back by whole repetitions: what was on at the shifted beginning is not lost.
        start = shift - math.ceil(shift / self.every_s) * self.every_s
        while True:
            for on, off in course:
                if start + off > 0:
                    yield max(start + on, 0.0), start + off
            start += self.every_s


def read_windows(path: Path) -> dict[str, Windows]:
    """Each device's windows, by its name in the order of first appearance; ascending, none touches the next.

    Raises:
        ConfigError: the file cannot be read, or rows are not windows; says in which lines.
    """
    courses: dict[str, list[tuple[float, float, int]]] = {}
    faults: list[str] = []
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for number in range(1, MOST_ROWS + 3):
                line = lines.readline(MOST_CHARACTERS + 1)
                if not line or len(faults) >= _FAULTS_SHOWN:
                    break
                fault = _fault(line.strip(), number, courses)
                if fault:
                    faults.append(f"{path.name}:{number}: {fault}")
                if len(line) > MOST_CHARACTERS and not line.endswith("\n"):
                    break
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read {path}: {reason}", hint=f"it takes lines of {_HEADER}") from None
    joined = {} if faults else {name: _ordered(rows, path, faults) for name, rows in courses.items()}
    if faults:
        raise ConfigError(f"{path} has faults:", faults=faults[:_FAULTS_SHOWN])
    if not joined:
        raise ConfigError(f"{path} holds no window", hint=f"it takes lines of {_HEADER}")
    return joined


def _fault(line: str, number: int, courses: dict[str, list[tuple[float, float, int]]]) -> str:
    """What is wrong with a line; nothing: its window is among ``courses`` now."""
    if number == 1:
        return "" if line.replace(" ", "") == _HEADER else f"the first line must be {_HEADER}"
    if not line:
        return ""
    if len(line) > MOST_CHARACTERS:
        return f"more than {MOST_CHARACTERS} characters"
    if number > MOST_ROWS + 1:
        return f"more than {MOST_ROWS:,} windows"
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != 3 or not cells[0]:
        return f"{len(cells)} cells, not a device and two numbers"
    try:
        on, off = float(cells[1]), float(cells[2])
    except ValueError:
        return f"on_s and off_s must be numbers, not {cells[1]!r} and {cells[2]!r}"
    if not 0 <= on < off < math.inf:
        return f"a window from {on:g} to {off:g} s: it must begin at 0 or later and end after that"
    courses.setdefault(cells[0], []).append((on, off, number))
    return ""


def _ordered(rows: list[tuple[float, float, int]], path: Path, faults: list[str]) -> Windows:
    rows.sort()
    for (_, ended, before), (begun, _, number) in itertools.pairwise(rows):
        if begun < ended:
            faults.append(f"{path.name}:{number}: begins before the window of line {before} ends")
    return tuple(_joined(iter([(on, off) for on, off, _ in rows])))


def _joined(windows: Iterator[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The same windows, those that touch made one."""
    held = next(windows, None)
    for on, off in windows:
        if held is not None and on <= held[1]:
            held = (held[0], max(held[1], off))
            continue
        if held is not None:
            yield held
        held = on, off
    if held is not None:
        yield held
