"""Link profiles: what a link between a device and its broker is like, as TOML.

Seven come along (``hil/profiles``): lan, wifi, lte, nb-iot, satellite, commuter, basement. Each says in a
comment where its figures are from.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_io.configuration import read_configuration
from fl_protocol.errors import ConfigError

__all__ = ["PROFILES", "LinkDirection", "LinkProfile", "Outage", "load_profile"]

PROFILES = Path(__file__).with_name("profiles")
_LEAST_PERIOD_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDirection:
    """One direction: one-way delay and its jitter in milliseconds, rate in kbit/s (0: unlimited), and the
    share of packets lost."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_kbps: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if min(self.delay_ms, self.jitter_ms, self.rate_kbps) < 0:
            raise ValueError("delay, jitter and rate are not negative")
        if not 0 <= self.loss < 1:
            raise ValueError("loss is a share in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A link that comes and goes: every ``every_s`` seconds it is away for ``lasting_s``.

    While it is away nothing passes and nothing is refused; ``resets`` says whether connections that were
    open are reset when it comes back, as after a new address, or go on.
    """

    every_s: float
    lasting_s: float
    resets: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.lasting_s < self.every_s:
            raise ValueError("an outage lasts longer than 0 s, and less than the time from one to the next")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """Both directions as seen from the device (``up`` leaves it), resets every ``reset_every_s`` seconds
    (0: never), and at most one outage that recurs."""

    up: LinkDirection = field(default_factory=LinkDirection)
    down: LinkDirection = field(default_factory=LinkDirection)
    reset_every_s: float = 0.0
    outage: Outage | None = None

    def __post_init__(self) -> None:
        if self.reset_every_s and self.reset_every_s < _LEAST_PERIOD_S:
            raise ValueError(f"resets at least {_LEAST_PERIOD_S} s apart, or 0 for none")

    def faster(self, factor: float) -> "LinkProfile":
        """The same link in a world that runs ``factor`` times as fast: rates times it, times by it."""

        def direction(way: LinkDirection) -> LinkDirection:
            return replace(
                way,
                delay_ms=way.delay_ms / factor,
                jitter_ms=way.jitter_ms / factor,
                rate_kbps=way.rate_kbps * factor,
            )

        outage = self.outage
        if outage is not None:
            outage = replace(outage, every_s=outage.every_s / factor, lasting_s=outage.lasting_s / factor)
        return replace(
            self,
            up=direction(self.up),
            down=direction(self.down),
            reset_every_s=self.reset_every_s / factor,
            outage=outage,
        )


def load_profile(name: str | Path) -> LinkProfile:
    """A profile that comes along, by its name, or one of your own, by the path of its file.

    Raises:
        ConfigError: there is none of that name, or the file has faults.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = PROFILES / f"{name}.toml"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.toml")))
            raise ConfigError(f"no link profile is called {str(name)!r}", hint=f"there are {known}")
    return read_configuration(path, LinkProfile)
