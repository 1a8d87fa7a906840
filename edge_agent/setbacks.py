"""Setbacks: failures in a row, and how long a device leaves off after each.

A worker that always crashes must not burn a battery: neither on one version, tried again and again, nor on
one version after the other.
"""

from dataclasses import dataclass

from edge_agent.back_off import back_off_s
from edge_agent.chance import Chance
from edge_agent.jobs import JobFailed
from fl_protocol.clock import Clock
from fl_protocol.task import TaskManifest

__all__ = ["MAX_TRIES", "Setbacks"]

MAX_TRIES = 5
"""Failures on one manifest after which only a newer one helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setback:
    """The last failure: on which manifest and work, for the how many-eth time there and in a row.

    ``retry_at`` is ``None`` when only a newer manifest helps, which may be tried from ``newer_at`` on.
    """

    order: tuple[int, int]
    work: tuple[bytes, str]
    failed: JobFailed
    tries: int
    in_a_row: int
    retry_at: float | None
    newer_at: float


class Setbacks:
    """What failed since the last success; a first failure does not delay a newer version."""

    __slots__ = ("_chance", "_clock", "_last")

    def __init__(self, clock: Clock, chance: Chance) -> None:
        self._clock = clock
        self._chance = chance
        self._last: _Setback | None = None

    def fail(self, manifest: TaskManifest, failed: JobFailed) -> bool:
        """Note a failure; whether it is the first on this manifest."""
        before = self._last
        again = before is not None and before.order == manifest.order
        tries = before.tries + 1 if before and again else 1
        in_a_row = before.in_a_row + 1 if before and before.work == _work(manifest) else 1
        now = self._clock.monotonic()
        self._last = _Setback(
            order=manifest.order,
            work=_work(manifest),
            failed=failed,
            tries=tries,
            in_a_row=in_a_row,
            retry_at=now + back_off_s(in_a_row, self._chance)
            if failed.retryable and tries < MAX_TRIES
            else None,
            newer_at=now + back_off_s(in_a_row - 1, self._chance) if in_a_row > 1 else now,
        )
        return not again

    def succeed(self) -> None:
        """All is well again."""
        self._last = None

    def pending(self, manifest: TaskManifest) -> tuple[str, float | None] | None:
        """Why this manifest is not to be worked on now, and from when on it may be (``None``: never)."""
        last = self._last
        if last is None or last.work != _work(manifest):
            return None
        until = last.retry_at if last.order == manifest.order else last.newer_at
        over = until is not None and self._clock.monotonic() >= until
        return None if over else (last.failed.reason, until)

    @property
    def standing(self) -> str:
        """What the last failure was, as it may leave the device, until something succeeds; empty where
        nothing has failed since."""
        return self._last.failed.for_others if self._last is not None else ""

    def for_others(self, reason: str) -> str:
        """A reason as it may leave the device: that of the last failure may not as it is."""
        last = self._last
        return last.failed.for_others if last is not None and reason == last.failed.reason else reason


def _work(manifest: TaskManifest) -> tuple[bytes, str]:
    """What a manifest asks to be done, whatever the version: another artifact may well succeed."""
    return manifest.artifact.sha256, manifest.codec
