"""Which samples each virtual device has: dealt out, drawn, by user, or a function's of one's own.

Drawn by class as in Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification (2019).
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.sample_form import as_stored
from fl_io.users_code import imported
from fl_protocol.errors import ConfigError, LayoutError
from hil.partition import BY_USER, concentration, partition
from hil.simulate.device_stream import generator
from hil.simulate.share import Share
from hil.workload import Samples

__all__ = [
    "ByUser",
    "Dealt",
    "DeviceSamplesOf",
    "Drawn",
    "own_devices",
    "partitioned",
    "slow_hold_classes",
]

_SLOW = re.compile(r"slow:(\d+(?:,\d+)*)")
_SCHEMES = "iid, dirichlet:0.3, by-user, or slow:8,9 (classes that slow devices alone have)"


class DeviceSamplesOf(Protocol):
    """A fleet's samples, made when they are asked for; the same device always has the same ones."""

    def __len__(self) -> int:
        """Number of devices."""
        ...

    def __getitem__(self, device: int) -> Share:
        """The samples of a device from 0 on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """Each sample on one device, as ``rows`` says for each of them."""

    samples: Samples
    rows: Sequence[NDArray[np.intp]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, device: int) -> Share:
        return _share(self.samples, self.rows[device])


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """``per_device`` samples for each of ``devices``, drawn with replacement from a stream of its own.

    More devices than there are samples are no matter, and no device changes with their number. ``alpha`` None
    draws from all alike, else each device prefers classes: their shares are drawn from a Dirichlet
    distribution around those in the data, of concentration ``alpha`` times the number of classes.
    """

    samples: Samples
    devices: int
    per_device: int
    seed: int
    alpha: float | None = None
    _members: tuple[NDArray[np.intp], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        y = self.samples.y
        members = [np.flatnonzero(y == label) for label in np.unique(y)] if self.alpha is not None else []
        object.__setattr__(self, "_members", tuple(members))

    def __len__(self) -> int:
        return self.devices

    def __getitem__(self, device: int) -> Share:
        if not 0 <= device < self.devices:
            raise IndexError(device)
        draw = generator(self.seed, device, "samples")
        if self.alpha is None:
            return _share(self.samples, draw.integers(0, len(self.samples), self.per_device))
        sizes = np.array([len(rows) for rows in self._members])
        shares = draw.dirichlet(self.alpha * len(sizes) * sizes / sizes.sum())
        counts = draw.multinomial(self.per_device, shares)
        rows = [
            own[draw.integers(0, len(own), count)] for own, count in zip(self._members, counts, strict=True)
        ]
        return _share(self.samples, draw.permutation(np.concatenate(rows)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ByUser:
    """Each device belongs to one user, of whom ``users`` tells for each sample; device 0 to the first.

    With ``per_device`` there may be more devices than users: users come around again, and each device draws
    so many of its user's samples, with replacement. Without, a device has all samples of its user.
    """

    samples: Samples
    users: NDArray[Any]
    devices: int
    per_device: int = 0
    seed: int = 0
    _members: tuple[NDArray[np.intp], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        members = tuple(np.flatnonzero(self.users == user) for user in np.unique(self.users))
        if self.devices > len(members) and not self.per_device:
            raise ConfigError(
                f"{self.devices} devices, and the samples are of {len(members)} users",
                hint=f"at most {len(members)} devices, or say how many samples each draws",
            )
        object.__setattr__(self, "_members", members)

    def __len__(self) -> int:
        return self.devices

    def __getitem__(self, device: int) -> Share:
        if not 0 <= device < self.devices:
            raise IndexError(device)
        own = self._members[device % len(self._members)]
        if self.per_device:
            own = own[generator(self.seed, device, "samples").integers(0, len(own), self.per_device)]
        return _share(self.samples, own)


def partitioned(
    samples: Samples,
    devices: int,
    *,
    scheme: str,
    seed: int,
    per_device: int = 0,
    users: NDArray[Any] | None = None,
    slow: NDArray[np.bool_] | None = None,
) -> DeviceSamplesOf:
    """A fleet's samples under ``scheme``: ``iid``, ``dirichlet:a``, ``by-user``, or ``slow:c,d``.

    Without ``per_device`` each sample is dealt out once, at least 20 to a device; with it each device draws
    so many, with replacement. ``by-user`` needs ``users``, one for each sample; ``slow:c,d`` needs ``slow``,
    one for each device, and always deals.

    Raises:
        ConfigError: an unknown scheme, or one that does not fit the samples or the number of devices.
    """
    if devices < 1 or per_device < 0:
        raise ConfigError(f"{devices} devices with {per_device} samples each", hint="at least 1 device")
    if scheme == BY_USER:
        if users is None or len(users) != len(samples):
            raise ConfigError("the samples do not tell whose they are", hint="of these, only motion does")
        return ByUser(samples=samples, users=users, devices=devices, per_device=per_device, seed=seed)
    if match := _SLOW.fullmatch(scheme):
        if slow is None or len(slow) != devices:
            raise ConfigError(
                f"partition {scheme!r} needs devices of several speeds", hint="give two classes"
            )
        return slow_hold_classes(samples, slow, classes=tuple(map(int, match[1].split(","))), seed=seed)
    try:
        alpha = concentration(scheme)
    except ConfigError:
        raise ConfigError(f"partition {scheme!r} is unknown", hint=f"write {_SCHEMES}") from None
    if not per_device:
        return Dealt(samples=samples, rows=partition(samples.y, devices, scheme=scheme, seed=seed))
    if alpha is not None and not samples.labelled:
        raise ConfigError(f"partition {scheme!r} draws by class, and the samples have none", hint="write iid")
    return Drawn(samples=samples, devices=devices, per_device=per_device, seed=seed, alpha=alpha)


def slow_hold_classes(
    samples: Samples, slow: NDArray[np.bool_], *, classes: Sequence[int], seed: int
) -> Dealt:
    """Deal ``classes`` out to the ``slow`` devices alone, and the others so that all have as many rows.

    What a fleet learns last, or never, where it counts the fast ones only.

    Raises:
        ConfigError: no class of each, or devices of one speed only.
    """
    if not samples.labelled or not slow.any() or slow.all():
        raise ConfigError(
            "classes cannot be dealt out by speed", hint="it takes classes, and slow devices and fast"
        )
    rare = np.isin(samples.y, list(classes))
    if not rare.any() or rare.all():
        raise ConfigError(
            f"of classes {', '.join(map(str, classes))} the samples hold {'all' if rare.any() else 'none'}"
        )
    random = np.random.default_rng(seed)
    theirs, others = (random.permutation(np.flatnonzero(which)) for which in (rare, ~rare))
    parts: list[list[int]] = [[] for _ in slow]
    for device, dealt in zip(np.flatnonzero(slow), np.array_split(theirs, int(slow.sum())), strict=True):
        parts[device].extend(dealt.tolist())
    # Whoever has least is dealt the next: rows are as many on each, as far as the rare ones let them be.
    level = _level(np.array([len(part) for part in parts]), len(others))
    end = 0
    for part, more in zip(parts, level, strict=True):
        part.extend(others[end : end + more].tolist())
        end += more
    return Dealt(samples=samples, rows=[np.sort(np.array(part, np.intp)) for part in parts])


def own_devices(name: str, devices: int, seed: int, *, folder: str = "") -> Sequence[Samples]:
    """What the function ``module:function``, called with ``devices`` and ``seed``, yields: (x, y) for each.

    The module is looked for on Python's path, or else in ``folder``.

    Raises:
        ConfigError: no such function, one that fails, or yields something else than so many pairs of arrays.
    """
    function = imported(name, what="function", folder=folder)
    try:
        made = list(itertools.islice(iter(function(devices, seed)), devices + 1))
    except MemoryError:
        raise
    except Exception as error:  # whatever a user's function raises is our caller's news
        raise ConfigError(f"{name} failed: {type(error).__name__}: {error}") from error
    if len(made) != devices:
        more = "more than" if len(made) > devices else f"{len(made)} instead of"
        raise ConfigError(f"{name} yields {more} {devices} pairs of x and y, one for each device")
    samples = [_pair(name, device, pair) for device, pair in enumerate(made)]
    shapes = [f"{list(own.x.shape[1:])} and {list(own.y.shape[1:])}" for own in samples]
    for device, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ConfigError(f"{name}: rows of device {device} are {shape}, those of device 0 {shapes[0]}")
    if not any(len(own.x) for own in samples):
        raise ConfigError(f"{name}: no device has any rows")
    return samples


def _share(samples: Samples, rows: NDArray[np.intp]) -> Share:
    return Share.of(samples.x, samples.y, rows)


def _pair(name: str, device: int, pair: Any) -> Samples:
    try:
        x, y = pair
        x, y = as_stored(x), as_stored(y)
    except (TypeError, ValueError, LayoutError) as error:
        raise ConfigError(f"{name}: device {device} is no pair of arrays x and y: {error}") from None
    if not x.ndim or not y.ndim or len(x) != len(y):
        raise ConfigError(
            f"{name}: device {device} has x {list(x.shape)} and y {list(y.shape)}, not rows of each"
        )
    return Samples(x=x, y=y)


def _level(held: NDArray[np.intp], more: int) -> Iterator[int]:
    """How many of ``more`` each gets, so that those who have least have as many as one another at the end."""
    order = np.argsort(held, kind="stable")
    gets = np.zeros(len(held), np.intp)
    for fill in range(len(held), 0, -1):
        poorest = order[:fill]
        total = int(held[poorest].sum()) + more
        height, rest = divmod(total, fill)
        if height >= held[poorest[-1]]:
            gets[poorest] = height - held[poorest]
            gets[poorest[:rest]] += 1
            break
    return iter(gets.tolist())
