"""Inquiry: asking devices for the newest manifest they have verified.

A device that is asked also restates its birth, and that shows the very claim it was asked for: without a
pause the two would go on for ever, and each question costs the device a signature to check.
"""

from collections import OrderedDict

from broker_coordinator.ingest import Batch
from broker_coordinator.leasing import Commands
from fl_protocol.clock import Clock

__all__ = ["Inquiry"]

AGAIN_S = 300.0
MOST_REMEMBERED = 4096


class Inquiry:
    """Asks each device at most once in five minutes; remembers the last 4,096 it asked."""

    def __init__(self, commands: Commands, clock: Clock) -> None:
        self._commands = commands
        self._clock = clock
        self._asked: OrderedDict[str, float] = OrderedDict()

    def ask(self, batch: Batch, device: str) -> None:
        """Ask a device for evidence with the batch's answers, unless it was asked just now."""
        now = self._clock.monotonic()
        if now < self._asked.get(device, now - AGAIN_S) + AGAIN_S:
            return
        self._asked[device] = now
        self._asked.move_to_end(device)
        if len(self._asked) > MOST_REMEMBERED:
            self._asked.popitem(last=False)
        batch.answers.append(self._commands.restate(device, evidence=True))
