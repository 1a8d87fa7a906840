"""The machine of a virtual device, as its agent's gates see it: memory, a battery, a charger."""

from fl_protocol.clock import Clock
from hil.simulate.device_stream import DeviceStream

__all__ = ["Battery", "DeviceMachine", "NightCharger", "WindowCharger"]

CHARGE_H = 2.0
"""From empty to full."""
_HOUR_S, _DAY_S = 3600.0, 86400.0
_NIGHT_FROM_H, _NIGHT_H = 22.0, 8.0


class NightCharger:
    """From ten in the evening to six in the morning, if virtual time begins at midnight."""

    def charges(self, now: float) -> bool:
        """Whether it does at that moment, in virtual seconds."""
        return (now / _HOUR_S - _NIGHT_FROM_H) % 24.0 < _NIGHT_H

    def charged_s(self, begin: float, end: float) -> float:
        """How many of the seconds between the two it charges."""
        return _night_s(end) - _night_s(begin)


class WindowCharger:
    """While the device is on (``charges_on``), or while it is off; ``switched`` is told each change."""

    def __init__(self, *, charges_on: bool) -> None:
        self._charges_on = charges_on
        self._plugged = not charges_on

    def switched(self, *, on: bool) -> None:
        """The device is on, or off, from now on."""
        self._plugged = on == self._charges_on

    def charges(self, now: float) -> bool:
        """Whether it does now."""
        return self._plugged

    def charged_s(self, begin: float, end: float) -> float:
        """How many of the seconds between the two, in which nothing was switched."""
        return end - begin if self._plugged else 0.0


class Battery:
    """Holds ``hours`` of training; what a device does besides counts as nothing. How full it is at first is
    drawn, between three tenths and full."""

    def __init__(
        self, charger: NightCharger | WindowCharger, *, hours: float, seed: int, device: int
    ) -> None:
        self._charger = charger
        self._hours = hours
        self._share = DeviceStream(seed, device, "battery").uniform(0.3, 1.0)
        self._at = 0.0
        self._trains_until = 0.0

    def share(self, now: float) -> float:
        """How much of a full charge it holds, from 0 to 1."""
        if now > self._at:
            trained = max(min(now, self._trains_until) - self._at, 0.0)
            gain = self._charger.charged_s(self._at, now) / (CHARGE_H * _HOUR_S)
            self._share = min(max(self._share + gain - trained / (self._hours * _HOUR_S), 0.0), 1.0)
            self._at = now
        return self._share

    def charges(self, now: float) -> bool:
        """Whether it charges."""
        return self._charger.charges(now)

    def switched(self, now: float, *, on: bool) -> None:
        """The device's power is on, or off, from now on."""
        self.share(now)
        if isinstance(self._charger, WindowCharger):
            self._charger.switched(on=on)

    def trains(self, now: float, seconds: float) -> None:
        """The device trains, for so long at most; 0 ends it."""
        self.share(now)
        self._trains_until = now + seconds


class DeviceMachine:
    """See ``edge_agent.gates.Machine``: cool and idle, with the memory of its class; without a ``battery`` on
    mains."""

    def __init__(self, clock: Clock, *, memory_mb: float, battery: Battery | None = None) -> None:
        self._clock = clock
        self._memory_mb = memory_mb
        self.cells = battery

    def on_mains(self) -> bool | None:
        """Whether it charges; always where it has no battery."""
        return self.cells is None or self.cells.charges(self._clock.monotonic())

    def temperature_c(self) -> float | None:
        """It does not tell."""
        return None

    def load(self) -> float | None:
        """It does not tell."""
        return None

    def free_memory_mb(self) -> float | None:
        """All that its class has for training."""
        return self._memory_mb

    def battery(self) -> float | None:
        """How full its battery is."""
        return self.cells.share(self._clock.monotonic()) if self.cells is not None else None


def _night_s(until: float) -> float:
    """Seconds of all nights from time 0 on; the first began two hours before it."""
    days, rest = divmod(until + (24.0 - _NIGHT_FROM_H) * _HOUR_S, _DAY_S)
    return days * _NIGHT_H * _HOUR_S + min(rest, _NIGHT_H * _HOUR_S)
