"""Classes of devices: how fast they train, what link and memory they have, and how many of them there are.

Four come along (``hil/simulate/classes``): phone, pi, gateway, microcontroller. Each says in a comment where
its figures are from; ``step_s`` is that of a small model (10,000 parameters, batches of 32), for others give
yours.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fl_io.configuration import check_table, read_configuration
from fl_protocol.errors import ConfigError
from hil.link_profile import PROFILES, load_profile
from hil.simulate.device_stream import DeviceStream

__all__ = ["DeviceClass", "class_of_name", "classes_of", "drawn"]

_READY = Path(__file__).with_name("classes")
_BYTES_S_OF_KBPS = 1000 / 8
_LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "share": (1e-6, 1e9),
        "step_s": (1e-6, 1e5),
        "start_s": (0, 1e5),
        "up_bytes_s": (1, math.inf),
        "down_bytes_s": (1, math.inf),
        "latency_s": (0, 3600),
        "memory_mb": (1, 1e7),
        "battery_h": (0.01, 1e5),
        "step_spread": (0, 3),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """One class; its ``share`` of the fleet is relative to those of the other classes.

    A training takes ``start_s`` and ``step_s`` for each step; what is sent takes ``latency_s`` one way and a
    second for each ``up_bytes_s`` (``down_bytes_s`` from the broker; infinite: no time). ``step_spread`` is
    the sigma of the logarithm of ``step_s`` among devices of the class, whose median it then is.
    ``memory_mb`` is what its agent finds free, ``battery_h`` how many hours of training a full ``battery``
    holds: both matter where gates ask for them.

    Raises:
        ValueError: a number out of range; says which is nearest.
    """

    name: str
    share: float = 1.0
    step_s: float = 0.1
    start_s: float = 1.0
    up_bytes_s: float = math.inf
    down_bytes_s: float = math.inf
    latency_s: float = 0.0
    memory_mb: float = 512.0
    battery: bool = False
    battery_h: float = 8.0
    step_spread: float = 0.0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """A class as a person writes it: what is not said is that of the class ``like``, else of ``link``."""

    like: str | None = None
    link: str | None = None
    share: float | None = None
    step_s: float | None = None
    start_s: float | None = None
    up_bytes_s: float | None = None
    down_bytes_s: float | None = None
    latency_s: float | None = None
    memory_mb: float | None = None
    battery: bool | None = None
    battery_h: float | None = None
    step_spread: float | None = None

    def __post_init__(self) -> None:
        if self.like is not None and self.like not in _ready():
            raise ValueError(f"like: {_nearest('class', self.like, _ready())}")
        profiles = sorted(file.stem for file in PROFILES.glob("*.toml"))
        if self.link is not None and not self.link.endswith(".toml") and self.link not in profiles:
            raise ValueError(f"link: {_nearest('link profile', self.link, profiles)}")
        _check(self)

    def made(self, name: str) -> DeviceClass:
        like = class_of_name(self.like) if self.like else DeviceClass(name=name)
        said = {
            field.name: value
            for field in fields(self)
            if field.name not in ("like", "link") and (value := getattr(self, field.name)) is not None
        }
        return replace(like, **{"name": name, **(_link(self.link) if self.link else {}), **said})


def class_of_name(name: str) -> DeviceClass:
    """A class that comes along.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in _ready():
        raise ConfigError(_nearest("device class", name, _ready()))
    return read_configuration(_READY / f"{name}.toml", _Words).made(name)


def classes_of(
    tables: Mapping[str, Any] | Sequence[str], *, path: Path = Path("classes")
) -> tuple[DeviceClass, ...]:
    """The classes of tables by name, or those that come along by their names alone.

    A table whose name is that of a class that comes along changes that one. ``path`` is the file
    that they are from.

    Raises:
        ConfigError: none at all, an unknown name, or faults in tables, every one told.
    """
    if not tables:
        raise ConfigError(
            f"{path}: there is no device class", hint=f"those that come along: {', '.join(_ready())}"
        )
    if not isinstance(tables, Mapping):
        return tuple(class_of_name(name) for name in tables)
    classes, faults = [], []
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            faults.append(f"{path.name}: {name}: must be a table")
            continue
        if (
            not table and name not in _ready()
        ):  # likelier a name misspelt than a class with nothing of its own
            faults.append(f"{path.name}: {_nearest('device class', name, _ready())}; or say what it is like")
            continue
        like = {"like": name} if name in _ready() else {}
        try:
            words = check_table({**like, **table}, _Words, path=path, within=("classes", name))
            classes.append(words.made(name))
        except ConfigError as error:
            told = error.faults or (str(error),)
            faults += told if path.is_file() else [f"{name}: {fault}" for fault in told]
    if faults:
        raise ConfigError(f"{path}: device classes have faults:", faults=faults)
    return tuple(classes)


def drawn(classes: Sequence[DeviceClass], device: int, seed: int) -> DeviceClass:
    """The class of a device, by their shares, with a ``step_s`` of its own where they spread."""
    if len(classes) == 1 and not classes[0].step_spread:
        return classes[0]
    draw = DeviceStream(seed, device, "device class")
    mark = draw.uniform() * sum(each.share for each in classes)
    chosen = classes[-1]
    for each in classes:
        mark -= each.share
        if mark < 0:
            chosen = each
            break
    if not chosen.step_spread:
        return chosen
    return replace(chosen, step_s=min(chosen.step_s * math.exp(chosen.step_spread * draw.normal()), 1e5))


def _link(name: str) -> dict[str, float]:
    """Rates and the mean delay of a link profile; loss counts as repeated sending does on the rate."""
    profile = load_profile(name)
    rates = {
        f"{way}_bytes_s": direction.rate_kbps * _BYTES_S_OF_KBPS * (1 - direction.loss) or math.inf
        for way, direction in (("up", profile.up), ("down", profile.down))
    }
    return {**rates, "latency_s": (profile.up.delay_ms + profile.down.delay_ms) / 2000}


def _ready() -> list[str]:
    return sorted(file.stem for file in _READY.glob("*.toml"))


def _nearest(what: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"no {what} is called {name!r}, " + (
        f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    )


def _check(value: DeviceClass | _Words) -> None:
    faults = list(_faults(value))
    if faults:
        raise ValueError("; ".join(faults))


def _faults(value: DeviceClass | _Words) -> Iterator[str]:
    for name, (least, most) in _LIMITS.items():
        number = getattr(value, name)
        if number is not None and not least <= number <= most:
            nearest = least if not number > least else most
            yield f"{name} = {number:g} is out of range; the nearest is {nearest:g}"
