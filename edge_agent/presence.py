"""This device's presence: the session of each connection, its birth, its will and its farewell."""

import functools
import secrets
from collections.abc import Callable

from fl_protocol.presence import LIFE_BYTES, SESSION_BYTES, DevicePresence
from fl_protocol.topics import FleetTopics
from fl_protocol.transport import Will

__all__ = ["AGENT_VERSION", "Presence", "is_older"]

AGENT_VERSION = "0.1.0"


class Presence:
    """``state/D`` as this agent says it. A transport asks ``will`` for each connection it makes, which
    opens a new session; birth and farewell name the session of the last one. A birth also names the
    ``life`` of this run of the agent."""

    __slots__ = ("_entropy", "_life", "_session", "topic")

    def __init__(
        self, topics: FleetTopics, device: str, *, entropy: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self.topic = topics.state(device)
        self._entropy = entropy
        self._session = entropy(SESSION_BYTES)
        self._life = entropy(LIFE_BYTES)

    def will(self) -> Will:
        """Open a session: what the broker says if its connection breaks."""
        self._session = self._entropy(SESSION_BYTES)
        return Will(self.topic, self.farewell())

    def farewell(self) -> bytes:
        """The word of a device that goes."""
        return DevicePresence(online=False, session=self._session).pack()

    def birth(
        self,
        *,
        incarnation: bytes,
        runtimes: tuple[str, ...],
        samples: int,
        idle_reason: str,
        seen: tuple[int, int],
    ) -> bytes:
        """The word of a device that is here."""
        return DevicePresence(
            online=True,
            session=self._session,
            incarnation=incarnation,
            agent=AGENT_VERSION,
            runtimes=runtimes,
            samples=samples,
            idle_reason=idle_reason[:256],
            seen=seen,
            life=self._life,
        ).pack()


def is_older(version: str, than: str) -> bool:
    """Whether release ``version`` (``1.2.3``) came before ``than``; text after the numbers is ignored."""
    return _numbers(version) < _numbers(than)


@functools.lru_cache(maxsize=16)
def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts[:3]) + (0,) * (3 - len(parts[:3]))
