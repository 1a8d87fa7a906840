"""Gates: why this device does not train now. Each is a function from what is so to a reason, or ``None``."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_agent.configuration import GateSettings
from fl_protocol.clock import Clock

__all__ = ["LinuxMachine", "Machine", "Surroundings", "shut_gate", "surroundings"]

CLOCK_IS_SET_AFTER = 1_735_689_600.0
"""2025-01-01: a machine that believes in an earlier day has not set its clock since it booted."""


class Machine(Protocol):
    """What the gates ask of the machine; ``None`` where it does not tell."""

    def on_mains(self) -> bool | None:
        """Whether a charger or mains supply is connected."""
        ...

    def temperature_c(self) -> float | None:
        """The hottest thermal zone, in degrees Celsius."""
        ...

    def load(self) -> float | None:
        """Load average of one minute."""
        ...

    def free_memory_mb(self) -> float | None:
        """Memory that a new process can have, in MiB."""
        ...

    def battery(self) -> float | None:
        """The share of its charge that the emptiest battery holds, from 0 to 1."""
        ...


class LinuxMachine:
    """Reads ``/sys``, ``/proc/meminfo`` and the load average."""

    def __init__(self, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        self._sys = sys
        self._proc = proc

    def on_mains(self) -> bool | None:
        """True on a machine without a battery that discharges."""
        supplies = self._supplies()
        online = [_text(supply / "online") for supply in supplies if _text(supply / "type") != "Battery"]
        if "1" in online:
            return True
        batteries = [_text(supply / "status") for supply in supplies if _text(supply / "type") == "Battery"]
        if batteries:
            return "Discharging" not in batteries
        return False if online else None

    def temperature_c(self) -> float | None:
        """The hottest of all zones that tell."""
        zones = [_text(zone) for zone in (self._sys / "class/thermal").glob("thermal_zone*/temp")]
        degrees = [int(zone) / 1000.0 for zone in zones if zone.lstrip("-").isdigit()]
        return max(degrees, default=None)

    def load(self) -> float | None:
        """From the kernel."""
        try:
            return os.getloadavg()[0]
        except OSError:
            return None

    def free_memory_mb(self) -> float | None:
        """What the kernel estimates, page cache included that it can let go of."""
        for line in _text(self._proc / "meminfo").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "MemAvailable:" and words[1].isdigit():
                return int(words[1]) / 1024.0
        return None

    def battery(self) -> float | None:
        """Of those that tell their capacity in percent."""
        batteries = [supply for supply in self._supplies() if _text(supply / "type") == "Battery"]
        told = [_text(battery / "capacity") for battery in batteries]
        return min((int(percent) / 100.0 for percent in told if percent.isdigit()), default=None)

    def _supplies(self) -> list[Path]:
        """Of this machine: a mouse has a battery of its own, and feeds nobody else."""
        supplies = (self._sys / "class/power_supply").glob("*")
        return [supply for supply in supplies if _text(supply / "scope") != "Device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is so around the agent at one moment. ``minute`` is local time since midnight, ``None`` while the
    clock is not set."""

    samples: int
    minute: int | None
    on_mains: bool | None
    temperature_c: float | None
    load: float | None
    free_memory_mb: float | None = None
    battery: float | None = None


def surroundings(machine: Machine, clock: Clock, samples: int) -> Surroundings:
    """Look around."""
    wall = clock.wall()
    local = time.localtime(wall)
    return Surroundings(
        samples=samples,
        minute=60 * local.tm_hour + local.tm_min if wall > CLOCK_IS_SET_AFTER else None,
        on_mains=machine.on_mains(),
        temperature_c=machine.temperature_c(),
        load=machine.load(),
        free_memory_mb=machine.free_memory_mb(),
        battery=machine.battery(),
    )


def enough_samples(settings: GateSettings, now: Surroundings) -> str | None:
    """At least ``min_samples`` training samples."""
    if now.samples >= settings.min_samples:
        return None
    return f"{now.samples} training samples, at least {settings.min_samples} are needed"


def quiet_hours(settings: GateSettings, now: Surroundings) -> str | None:
    """Not inside the quiet hours; not at all while nobody knows what time it is."""
    quiet = settings.quiet_minutes
    if quiet is None:
        return None
    if now.minute is None:
        return "the clock is not set, so the quiet hours cannot be kept"
    begin, end = quiet
    inside = begin <= now.minute < end if begin <= end else now.minute >= begin or now.minute < end
    return f"quiet hours {settings.quiet_hours}" if inside else None


def mains(settings: GateSettings, now: Surroundings) -> str | None:
    """Mains power, where it is asked for; a machine that does not tell has no battery."""
    return "on battery" if settings.mains_only and now.on_mains is False else None


def cool_enough(settings: GateSettings, now: Surroundings) -> str | None:
    """At most ``max_temperature_c``."""
    if not settings.max_temperature_c or now.temperature_c is None:
        return None
    if now.temperature_c <= settings.max_temperature_c:
        return None
    return f"{now.temperature_c:.0f} C, at most {settings.max_temperature_c:.0f} C are allowed"


def idle_enough(settings: GateSettings, now: Surroundings) -> str | None:
    """A load of at most ``max_load``."""
    if not settings.max_load or now.load is None or now.load <= settings.max_load:
        return None
    return f"load {now.load:.1f}, at most {settings.max_load:.1f} is allowed"


def enough_memory(settings: GateSettings, now: Surroundings) -> str | None:
    """At least ``min_memory_mb`` free."""
    if now.free_memory_mb is None or now.free_memory_mb >= settings.min_memory_mb:
        return None
    return (
        f"{now.free_memory_mb:.0f} MiB of memory are free, at least {settings.min_memory_mb:.0f} are needed"
    )


def charged(settings: GateSettings, now: Surroundings) -> str | None:
    """At least ``min_battery`` of the battery's charge, unless it is on mains."""
    if now.on_mains or now.battery is None or now.battery >= settings.min_battery:
        return None
    return f"the battery is at {now.battery:.0%}, at least {settings.min_battery:.0%} are needed"


GATES: tuple[Callable[[GateSettings, Surroundings], str | None], ...] = (
    enough_samples,
    quiet_hours,
    mains,
    charged,
    cool_enough,
    idle_enough,
    enough_memory,
)


GATES_IN_TRAINING = (quiet_hours, mains, charged, cool_enough)
"""Those that end a training under way; load and memory are then its own."""


def shut_gate(settings: GateSettings, now: Surroundings, *, in_training: bool = False) -> str | None:
    """The first reason not to train now; ``None`` when all gates are open."""
    gates = GATES_IN_TRAINING if in_training else GATES
    return next(filter(None, (gate(settings, now) for gate in gates)), None)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
