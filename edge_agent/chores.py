"""Chores: what the supervisor does by turns. One that fails rests for a minute; the others go on."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from edge_agent.sqlite_file import is_damage
from fl_protocol.clock import Clock
from fl_protocol.errors import LichenError

__all__ = ["AFTER_TROUBLE_S", "Chores"]

AFTER_TROUBLE_S = 60.0
_log = logging.getLogger("lichen.agent")

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    """What a chore's last turn failed by, and when the next one is."""

    reason: str
    rests_until: float


class Chores(Generic[Owner]):
    """Work of ``owner`` by name, done in the order given; each says how many seconds it can wait for its next
    turn.

    A disk that refuses must not end the agent, and what fails must not be tried at every event: a training
    whose result cannot be kept would start anew at once, for ever.

    Raises:
        StorageError: from every method, if the outbox itself is damaged. Only opening it anew helps then.
    """

    __slots__ = ("_clock", "_owner", "_troubles", "_works", "failures")

    def __init__(self, clock: Clock, owner: Owner, works: Mapping[str, Callable[[Owner], float]]) -> None:
        self.failures = 0
        """Turns, and other work of this device, that an error ended."""
        self._clock = clock
        self._owner = owner
        self._works = works
        self._troubles: dict[str, _Trouble] = {}

    def work(self) -> float:
        """Do every chore that does not rest; seconds until one wants its next turn."""
        owner, troubles = self._owner, self._troubles
        waits = []
        for name, work in self._works.items():
            if troubles and name in troubles:
                left = troubles[name].rests_until - self._clock.monotonic()
                if left > 0:
                    waits.append(left)
                    continue
            try:
                waits.append(work(owner))
            except (LichenError, OSError) as error:
                waits.append(self.rest(name, error))
            else:
                if troubles:
                    troubles.pop(name, None)
        return min(waits)

    def rest(self, name: str, error: Exception) -> float:
        """Let a chore rest because of an error; for how many seconds."""
        self.count(error, known=str(error) == self.trouble(name))
        until = self._clock.monotonic() + AFTER_TROUBLE_S
        self._troubles[name] = _Trouble(reason=str(error), rests_until=until)
        return AFTER_TROUBLE_S

    def count(self, error: Exception, *, known: bool = False) -> None:
        """Count an error, and say it unless it is ``known``."""
        self.failures += 1
        if is_damage(error):
            raise error
        if not known:
            _log.error("%s", error)

    def trouble(self, name: str) -> str:
        """What the last turn of a chore failed by; empty where it did not."""
        trouble = self._troubles.get(name)
        return trouble.reason if trouble is not None else ""
