"""The watchdog: tells systemd that a program is ready, and that all of it is alive (``sd_notify(3)``).

systemd kills a service that does not say ``WATCHDOG=1`` in time, and starts it anew. Here the main loop
says so, and only while nothing else of the program is past its own deadline: a network thread that hangs in
a socket or a worker that never ends is as bad as a loop that stands still.
"""

import contextlib
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence

from fl_protocol.clock import Clock

__all__ = ["LONGEST_PIECE_S", "Notifier", "Watchdog"]

LONGEST_PIECE_S = 240.0
"""What a piece of a start may take unless it says more: below the 300 s of our units' ``WatchdogSec=``."""
ASK_EVERY_S = 10.0


class Notifier:
    """systemd's notification socket, as the environment names it; without one nothing is said.

    ``watchdog_s`` is how long systemd waits between two signs of life; 0 where it does not watch this
    process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        # An abstract name has an @ for its first byte, which is 0.
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_s = 0.0
        watched = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        with contextlib.suppress(ValueError):
            self.watchdog_s = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 if watched else 0.0

    def say(self, *lines: str) -> None:
        """Send a notification, as ``READY=1``. Nobody who listens is no reason to fail."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(1.0)
            channel.sendto("\n".join(lines).encode(), self._address)


class Watchdog:
    """Says ``WATCHDOG=1`` up to ten times in systemd's time, as long as no one of ``checks`` names a fault.

    A loop that turns is alive; so is one whose turn is long, if it says so between its pieces: ``progress``.
    A start that takes longer than ``TimeoutStartSec=`` is granted more, a piece at a time.
    """

    def __init__(self, notifier: Notifier, clock: Clock, checks: Sequence[Callable[[], str]] = ()) -> None:
        self.fault = ""
        """What keeps it from being fed; empty while all is well."""
        self._notifier = notifier
        self._clock = clock
        self._checks = list(checks)
        self._started = False
        self._asked_at = self._fed_at = -math.inf
        self._alive_at = clock.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life, given or not."""
        return self._clock.monotonic() - self._alive_at

    def add(self, check: Callable[[], str]) -> None:
        """Ask one more for its fault."""
        self._checks.append(check)

    def ready(self) -> None:
        """It has started."""
        self._started = True
        self._notifier.say("READY=1")

    def stopping(self) -> None:
        """It ends, and means to."""
        self._notifier.say("STOPPING=1")

    def progress(self, piece_s: float = LONGEST_PIECE_S) -> None:
        """A piece of long work is done, and the next takes ``piece_s`` seconds at most."""
        if self._started:
            self.turn()
            return
        self._alive_at = now = self._clock.monotonic()
        if now >= self._asked_at + ASK_EVERY_S or piece_s > LONGEST_PIECE_S:
            self._asked_at = now
            self._notifier.say(f"EXTEND_TIMEOUT_USEC={round((piece_s + ASK_EVERY_S) * 1e6)}")

    def turn(self) -> float | None:
        """The main loop is here: feed it if that is due; seconds until it should be here again."""
        self._alive_at = now = self._clock.monotonic()
        patience = self._notifier.watchdog_s
        if not patience:
            return None
        # Often, and not only when it is due: what follows may block, and has what is left of the time.
        if now >= self._fed_at + patience / 10:
            self._fed_at = now
            self.fault = next(filter(None, (check() for check in self._checks)), "")
            if self.fault:
                self._notifier.say(f"STATUS={self.fault}")
            else:
                self._notifier.say("WATCHDOG=1", "STATUS=")
        return self._fed_at + patience / 2 - now
