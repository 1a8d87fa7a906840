"""Refusals: updates of one version that were not taken, and how long a device leaves off after each.

A refusal may pass: the device was revoked and is enrolled again, the task has another codec. Then its version
waits for it. One that does not pass must not cost a battery.
"""

from typing import NamedTuple

from edge_agent.back_off import back_off_s
from edge_agent.chance import Chance
from fl_protocol.clock import Clock
from fl_protocol.version import VersionId

__all__ = ["Refusals"]


class _Refusal(NamedTuple):
    """The newest: of which version and why, for the how many-eth time in a row, and until when it counts."""

    base: VersionId
    reason: str
    in_a_row: int
    until: float


class Refusals:
    """Those of the version that was refused last; another version is not put off."""

    __slots__ = ("_chance", "_clock", "_last")

    def __init__(self, clock: Clock, chance: Chance) -> None:
        self._clock = clock
        self._chance = chance
        self._last: _Refusal | None = None

    def note(self, base: VersionId, reason: str) -> None:
        """An update of ``base`` was refused."""
        before = self._last
        if before is not None and (base.epoch, base.number) < (before.base.epoch, before.base.number):
            return  # of a version that is not trained on any more
        in_a_row = before.in_a_row + 1 if before is not None and before.base == base else 1
        until = self._clock.monotonic() + back_off_s(in_a_row, self._chance)
        self._last = _Refusal(base, reason, in_a_row, until)

    def pending(self, version: VersionId) -> tuple[str, float] | None:
        """Why a version is not to be trained on again now, and from when on it may be."""
        last = self._last
        if last is None or last.base != version or self._clock.monotonic() >= last.until:
            return None
        name = f"{version.epoch}.{version.number}"
        return f"its update of version {name} was refused ({last.reason}); it tries again", last.until
