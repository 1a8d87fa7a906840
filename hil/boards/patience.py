"""Waiting that is bounded, and says what it waits for."""

import time
from collections.abc import Callable

from hil.boards.board import BoardFailure

__all__ = ["Patience"]

POLL_S = 0.05
SILENT_S = 3.0
"""A wait that is over by then is not spoken of."""
SAY_EVERY_S = 10.0


class Patience:
    """Waits; ``say`` takes a sentence of progress. Files and status commands send no event: it polls."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def until(
        self,
        what: str,
        holds: Callable[[], object],
        *,
        within_s: float,
        why: Callable[[], str] = lambda: "",
        poll_s: float = POLL_S,
    ) -> float:
        """Wait until ``holds`` is true; the seconds that it took. ``why`` tells how things stand.

        Raises:
            BoardFailure: it is not true after ``within_s`` seconds.
        """
        began = time.monotonic()
        say_at = began + SILENT_S
        while not holds():
            now = time.monotonic()
            if now - began > within_s:
                raise BoardFailure(f"in vain, for {within_s:.0f} s: {what}", hint=why() or "see the logs")
            if now >= say_at:
                self._say(f"{what} ({now - began:.0f} of at most {within_s:.0f} s)")
                say_at = now + SAY_EVERY_S
            time.sleep(poll_s)
        return time.monotonic() - began
