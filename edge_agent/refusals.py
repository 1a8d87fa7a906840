"""Refusals: updates of one version that were not taken, and how long a device leaves off after each.

A refusal may pass: the device was revoked and is enrolled again, the task has another codec. Then its version
waits for it. One that does not pass must not cost a battery.
"""

import random

from fl_protocol.clock import Clock
from fl_protocol.version import VersionId

__all__ = ["Refusals"]

FIRST_RETRY_S = 30.0
LONGEST_RETRY_S = 3600.0


class Refusals:
    """Those of the version that was refused last. Delays double from 30 s to an hour, and up to twice that at
    random; another version is not put off."""

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        self._clock = clock
        self._chance = chance
        self._base: VersionId | None = None
        self._reason = ""
        self._in_a_row = 0
        self._until = 0.0

    def note(self, base: VersionId, reason: str) -> None:
        """An update of ``base`` was refused."""
        self._in_a_row = self._in_a_row + 1 if base == self._base else 1
        self._base, self._reason = base, reason
        delay = min(FIRST_RETRY_S * 2.0 ** min(self._in_a_row - 1, 16), LONGEST_RETRY_S)
        self._until = self._clock.monotonic() + delay * self._chance.uniform(1.0, 2.0)

    def pending(self, version: VersionId) -> tuple[str, float] | None:
        """Why a version is not to be trained on again now, and from when on it may be."""
        if version != self._base or self._clock.monotonic() >= self._until:
            return None
        name = f"{version.epoch}.{version.number}"
        return f"its update of version {name} was refused ({self._reason}); it tries again", self._until
