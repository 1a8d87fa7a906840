"""When virtual devices are on: always, at night, all day but for the ways to work, at random, or as recorded.

A device that charges at night is Bonawitz et al.: Towards Federated Learning at Scale (2019), section 9;
sessions whose lengths are lognormal, as measured for peers: Stutzbach, Rejaie: Understanding Churn in
Peer-to-Peer Networks (2006).
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from fl_io.configuration import check_table
from fl_protocol.errors import ConfigError
from hil.simulate.device_stream import DeviceStream
from hil.simulate.recorded_windows import Recorded

__all__ = [
    "AVAILABILITIES",
    "Always",
    "Availability",
    "Commuter",
    "Diurnal",
    "LognormalOnOff",
    "availability_of",
]

_HOUR_S, _DAY_S = 3600.0, 86400.0
_WEEK_DAYS = 7


class Availability(Protocol):
    """When a device is on."""

    def windows(self, device: int, seed: int) -> Iterator[tuple[float, float]]:
        """Endless ``(on_s, off_s)`` in virtual seconds from 0, ascending, each begun after the last ended.

        A window that ends at infinity is the last.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Always:
    """On from the beginning, for ever."""

    def windows(self, device: int, seed: int) -> Iterator[tuple[float, float]]:
        """See ``Availability.windows``."""
        yield 0.0, math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Diurnal:
    """On in the night, where a device lies still and charges: ``hours`` from ``from_h`` o'clock on.

    Each device's clock is off by up to ``phase_h``, drawn once (12: all over the world). Each night begins
    and ends within ``jitter_h`` of the usual time, and is left out with probability ``missed``. Virtual time
    0 is ``starts_h`` o'clock.
    """

    from_h: float = 22.0
    hours: float = 8.0
    phase_h: float = 2.0
    jitter_h: float = 0.5
    missed: float = 0.05
    starts_h: float = 0.0

    def __post_init__(self) -> None:
        _within(self, from_h=(0, 24), starts_h=(0, 24), hours=(0.1, 23), phase_h=(0, 12), missed=(0, 0.99))
        _within(self, jitter_h=(0, min(self.hours, 24 - self.hours) / 2 - 0.01))

    def windows(self, device: int, seed: int) -> Iterator[tuple[float, float]]:
        """See ``Availability.windows``."""
        draw = DeviceStream(seed, device, "diurnal")
        first = self.from_h - self.starts_h + draw.uniform(-self.phase_h, self.phase_h)
        first -= 24 * math.ceil((first + self.hours + self.jitter_h) / 24)  # a night may be on at time 0
        day = 0
        while True:
            on = first + 24 * day + draw.uniform(-self.jitter_h, self.jitter_h)
            off = first + 24 * day + self.hours + draw.uniform(-self.jitter_h, self.jitter_h)
            day += 1
            if draw.uniform() > self.missed and off > 0:
                yield max(on, 0.0) * _HOUR_S, off * _HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Commuter:
    """On but for the two ways of a working day, begun at ``leaves_h`` and ``returns_h`` and ``gap_h`` long.

    Each device's times are off by up to ``phase_h``, drawn once, and by up to ``jitter_h`` each day. Virtual
    time 0 is Monday, ``starts_h`` o'clock; the last two days of a week have no gaps.
    """

    leaves_h: float = 7.5
    returns_h: float = 17.5
    gap_h: float = 0.75
    phase_h: float = 1.0
    jitter_h: float = 0.25
    starts_h: float = 0.0

    def __post_init__(self) -> None:
        _within(self, starts_h=(0, 24), gap_h=(0.01, 4), phase_h=(0, 3), jitter_h=(0, 1))
        apart = self.gap_h + 2 * self.jitter_h + 0.01
        _within(self, leaves_h=(0, 24 - 2 * apart))
        _within(self, returns_h=(self.leaves_h + apart, self.leaves_h + 24 - apart))

    def windows(self, device: int, seed: int) -> Iterator[tuple[float, float]]:
        """See ``Availability.windows``."""
        draw = DeviceStream(seed, device, "commuter")
        shift = draw.uniform(-self.phase_h, self.phase_h) - self.starts_h
        on, day = 0.0, -1
        while True:
            for begins in (self.leaves_h, self.returns_h):
                off = 24 * day + begins + shift + draw.uniform(-self.jitter_h, self.jitter_h)
                if day % _WEEK_DAYS >= _WEEK_DAYS - 2:
                    continue
                if off > on:
                    yield on * _HOUR_S, off * _HOUR_S
                on = max(on, off + self.gap_h)
            day += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalOnOff:
    """On and off by turns, for lognormal times: medians ``on_s`` and ``off_s``, sigmas of their logarithms.

    A sigma of 0 is that length always, of 1 a fifth of them above 2.3 medians. The beginning is somewhere in
    the course of it, as far on as a device is that has run for long: what is on then is a long window
    oftener.
    """

    on_s: float = 900.0
    off_s: float = 900.0
    on_sigma: float = 1.0
    off_sigma: float = 1.0

    def __post_init__(self) -> None:
        _within(self, on_s=(1, 365 * _DAY_S), off_s=(1, 365 * _DAY_S), on_sigma=(0, 3), off_sigma=(0, 3))

    def windows(self, device: int, seed: int) -> Iterator[tuple[float, float]]:
        """See ``Availability.windows``."""
        draw = DeviceStream(seed, device, "on and off")
        mean_on = self.on_s * math.exp(self.on_sigma**2 / 2)
        mean_off = self.off_s * math.exp(self.off_sigma**2 / 2)
        on = draw.uniform() < mean_on / (mean_on + mean_off)
        now, rest = 0.0, draw.uniform()
        while True:
            median, sigma = (self.on_s, self.on_sigma) if on else (self.off_s, self.off_sigma)
            # A moment falls into an interval in proportion to its length, and such lengths are lognormal
            # too, with the median times exp(sigma^2).
            weight = sigma**2 if rest else 0.0
            lasts = median * math.exp(sigma * draw.normal() + weight) * (rest or 1.0)
            if on:
                yield now, now + lasts
            now, on, rest = now + lasts, not on, 0.0


AVAILABILITIES: Mapping[str, type[Any]] = MappingProxyType(
    {
        "always": Always,
        "commuter": Commuter,
        "csv": Recorded,
        "diurnal": Diurnal,
        "lognormal": LognormalOnOff,
    }
)
"""By the words of a scenario's ``kind``."""


def availability_of(words: str | Mapping[str, Any], *, path: Path = Path("availability")) -> Availability:
    """The availability that is called ``words``, or that a table with ``kind`` and its keys describes.

    A text that ends in ``.csv`` is a file of windows. Errors and paths are relative to the file ``path``.

    Raises:
        ConfigError: no such kind, or a key or value that it does not take.
    """
    if isinstance(words, str):
        words = {"kind": "csv", "file": words} if words.endswith(".csv") else {"kind": words}
    table = dict(words)
    kind = table.pop("kind", "always")
    if not isinstance(kind, str) or kind not in AVAILABILITIES:
        near = difflib.get_close_matches(str(kind), AVAILABILITIES, n=1)
        raise ConfigError(
            f"{path}: no availability is called {kind!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"there are {', '.join(AVAILABILITIES)}",
        )
    made: Availability = check_table(table, AVAILABILITIES[kind], path=path, within=("availability",))
    return made


def _within(value: object, **limits: tuple[float, float]) -> None:
    faults = list(_beyond(value, limits.items()))
    if faults:
        raise ValueError("; ".join(faults))


def _beyond(value: object, limits: Iterable[tuple[str, tuple[float, float]]]) -> Iterator[str]:
    for name, (least, most) in limits:
        number = getattr(value, name)
        if not least <= number <= most:
            nearest = least if number < least else most
            yield f"{name} = {number:g} is not from {least:g} to {most:g}; nearest is {nearest:g}"
