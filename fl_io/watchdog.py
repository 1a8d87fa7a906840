"""The watchdog: tells systemd that a program is ready, and that all of it is alive (``sd_notify(3)``).

systemd kills a service that does not say ``WATCHDOG=1`` in time, and starts it anew. Here the main loop
says so, and only while nothing else of the program is past its own deadline: a network thread that hangs in
a socket or a worker that never ends is as bad as a loop that stands still.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence

from fl_protocol.clock import Clock

__all__ = ["Notifier", "Watchdog"]


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
    """Says ``WATCHDOG=1`` twice in systemd's time, as long as no one of ``checks`` names a fault."""

    def __init__(self, notifier: Notifier, clock: Clock, checks: Sequence[Callable[[], str]] = ()) -> None:
        self.fault = ""
        """What keeps it from being fed; empty while all is well."""
        self._notifier = notifier
        self._clock = clock
        self._checks = list(checks)
        self._next = 0.0

    def add(self, check: Callable[[], str]) -> None:
        """Ask one more for its fault."""
        self._checks.append(check)

    def ready(self) -> None:
        """It has started."""
        self._notifier.say("READY=1")

    def stopping(self) -> None:
        """It ends, and means to."""
        self._notifier.say("STOPPING=1")

    def turn(self) -> float | None:
        """The main loop is here: feed it if that is due; seconds until it should be here again."""
        if not self._notifier.watchdog_s:
            return None
        now = self._clock.monotonic()
        if now >= self._next:
            self._next = now + self._notifier.watchdog_s / 2
            self.fault = next(filter(None, (check() for check in self._checks)), "")
            if self.fault:
                self._notifier.say(f"STATUS={self.fault}")
            else:
                self._notifier.say("WATCHDOG=1", "STATUS=")
        return self._next - now
