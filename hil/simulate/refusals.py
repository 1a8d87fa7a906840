"""Refusals: a simulation whose updates are all refused is told so, and ended."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from fl_protocol.errors import ConfigError

__all__ = ["Refusals"]

_FEWEST = 100
_OF_EACH_DEVICE = 2
_MOST = 10_000
_PATIENCE_S = 3600.0
_WHAT_TO_DO: Mapping[str, str] = MappingProxyType(
    {
        "stale": "trained on a version too old: shorten trainings, or raise [fleet.horizon] versions",
        "layout": "the trainer gives tensors that are not the artifact's: compare their names and shapes",
        "not_finite": "trainings end in NaN or infinity: lower [fleet.plan] lr, or set its clip",
        "malformed": "a figure is missing or no number: an aggregator that reads a metric needs devices that"
        " hold samples out (held_out above 0), and a trainer whose evaluate gives it",
        "already_counted": "a device counts once for a version: [fleet.buffer] size is above the devices that"
        " train, or set its flush_after_s",
        "codec": "payloads do not decode: is [fleet.update] codec the one of the devices?",
        "oversize": "payloads are larger than codec and model allow",
    }
)
_FAILURES = "their own words are above; where they diverge lower [fleet.plan] lr, or scale the inputs"


class Refusals:
    """Counts what came to nothing since the last acceptance, in a fleet of so many devices."""

    def __init__(self, devices: int) -> None:
        self.bound = min(_FEWEST + _OF_EACH_DEVICE * devices, _MOST)
        """So many refusals in a row are no accident: each device was refused twice."""
        self._devices = devices
        self._accepted = 0
        self._accepted_at = 0.0
        self._refused: Counter[str] = Counter()
        self._failed = 0

    def look(self, now: float, accepted: int, refused: Mapping[str, int], failed: int) -> None:
        """Take the coordinator's counts so far: updates, and trainings that devices report as failed.

        Raises:
            ConfigError: since an update was accepted ``bound`` were refused, or as many came to nothing as
                there are devices, and then none for an hour of virtual time; says why, and what to do.
        """
        if accepted != self._accepted:
            self._accepted, self._accepted_at = accepted, now
            self._refused, self._failed = Counter(refused), failed
            return
        total = sum(refused.values()) - sum(self._refused.values())
        failures = failed - self._failed
        # Who was refused waits, in the end for hours: a second refusal of each may be long in coming.
        still = total + failures >= self._devices and now - self._accepted_at >= _PATIENCE_S
        if total < self.bound and not still:
            return
        since = Counter(refused)
        since.subtract(self._refused)
        faults = [
            f"{count} updates refused, {reason}: {_WHAT_TO_DO.get(reason, 'see docs/protocol.md')}"
            for reason, count in since.most_common()
            if count > 0
        ]
        if failures:
            faults.append(f"{failures} trainings failed on their devices: {_FAILURES}")
        when = f"since {self._accepted_at:.0f} s of virtual time no" if accepted else "no"
        raise ConfigError(f"the run comes to nothing: {when} update was accepted", faults=faults)
