"""The trial of a broker: does it keep retained messages?

Some brokers drop the connection on the first retained message, some take it and keep nothing. So one is
sent that costs nothing, our own presence, and asked back. A link may break by chance while it is under way:
only twice in a row is a refusal, and that is final. What merely did not come back is tried again with the
next connection.
"""

import logging

__all__ = ["RetainTrial"]

PATIENCE_S = 5.0
REFUSALS = 2
_log = logging.getLogger("lichen.coordinator")


class RetainTrial:
    """``setting`` is ``auto`` or ``never``; times in seconds of a monotonic clock."""

    def __init__(self, setting: str) -> None:
        self.verdict: bool | None = False if setting == "never" else None
        """Whether retained messages are kept; None while nobody knows."""
        self._token: int | None = None
        self._refusals = 0
        self._final = self.verdict is not None
        self._until = 0.0
        self.begun = False
        """Whether it goes on in this connection."""

    def begin(self, token: int, now: float) -> None:
        """The retained message is under way."""
        self.begun = True
        self._token = token
        self._until = now + PATIENCE_S

    def delivered(self, token: int) -> bool:
        """Whether this acknowledges the trial's message: it can be asked back now."""
        if self._token is None or token != self._token:
            return False
        self._token, self._refusals = None, 0
        return True

    def came_back(self) -> None:
        """A retained message of ours was read."""
        self.verdict = True

    def left(self, now: float) -> float:
        """Seconds until the trial is over: it is then, and what did not come back was not kept."""
        if self.verdict is None and now >= self._until:
            self._conclude()
        return 0.0 if self.verdict is not None else self._until - now

    def broken_off(self) -> None:
        """The connection ended."""
        self.begun = False
        if self._token is not None:
            self._token = None
            self._refusals += 1
            self._final = self._refusals >= REFUSALS
            if self._final:
                self._conclude()
        elif self.verdict is False and not self._final:
            self.verdict = None

    def _conclude(self) -> None:
        self.verdict = False
        _log.warning("this broker keeps no retained messages: devices ask us for what they need")
