"""Weighing: what has become of updates so far under a rule of the user's, and so whose fault a failure is.

A rule can fail on one update alone: it divides by a loss of 0, or takes the exponential of a huge one. Such
an update stays with its device, and nobody waits for it. Whether the rule is at fault too is a matter of how
many devices it fails on: none of them alone may give a sound rule a bad name, and none alone a good one.
"""

import logging
from collections.abc import Iterable

from fl_protocol.errors import AggregatorError

__all__ = ["MOST_METRICS", "Weighing"]

MOST_METRICS = 256
"""Names of metrics that are remembered: what devices call them is theirs."""
MOST_DEVICES = 256
"""Devices whose newest update is remembered, and that are named in the log once each."""
FAULTY_SHARE = 0.5
"""A rule that fails on more of the devices heard last is at fault,"""
WELL_SHARE = 0.25
"""until it fails on no more than these: else a fault at the edge would come and go."""
SILENT_TURNS = 4
"""A failure is forgotten when the others have had so many turns each, and its device none."""
_log = logging.getLogger("lichen.coordinator")


class Weighing:
    """``reported`` names metrics that the rule has asked for, and found in updates that were accepted;
    ``fault`` is what is wrong with the rule, empty where nothing is."""

    def __init__(self) -> None:
        self.reported: set[str] = set()
        self.fault = ""
        self._proven = False
        self._turn = 0
        self._heard: dict[str, int] = {}
        """The turn of each device's newest update; the oldest first."""
        self._failing: dict[str, AggregatorError] = {}
        """What the rule said of those that it failed on."""
        self._told: set[str] = set()

    @property
    def share(self) -> float:
        """In [0, 1]: of the devices heard last, those on whose newest update the rule failed."""
        return len(self._failing) / len(self._heard) if self._heard else 0.0

    def took(self, weighed: Iterable[tuple[str, frozenset[str]]]) -> None:
        """Updates were accepted: of each its device, and the metrics that the rule asked it for, and got."""
        for device, names in weighed:
            if len(self.reported) < MOST_METRICS:
                self.reported |= names
            self._proven = True
            self._hear(device)
        if self._failing or self.fault:
            self._judge()

    def failed(self, device: str, error: AggregatorError) -> None:
        """The rule failed on an update of ``device``."""
        self._hear(device)
        self._failing[device] = error
        before = self.fault
        self._judge()
        news = device not in self._told and len(self._told) < MOST_DEVICES
        if news:
            self._told.add(device)
        if self.fault and not before:
            _log.error("%s", self.fault)
        elif news:
            _log.warning("%s", error)

    def _hear(self, device: str) -> None:
        self._turn += 1
        self._heard.pop(device, None)
        self._heard[device] = self._turn
        self._failing.pop(device, None)
        if len(self._heard) > MOST_DEVICES:
            self._forget(next(iter(self._heard)))

    def _judge(self) -> None:
        long_ago = self._turn - SILENT_TURNS * len(self._heard)
        for device in [device for device in self._failing if self._heard[device] < long_ago]:
            self._forget(device)
        enough = WELL_SHARE if self.fault else FAULTY_SHARE
        standing = len(self._failing) > 1 and self.share > enough
        of_how_many = f"it fails for {len(self._failing)} of the {len(self._heard)} devices heard last"
        if self._failing and (standing or not self._proven):
            newest = self._failing[next(reversed(self._failing))]
            self.fault = str(AggregatorError(f"{newest.args[0]}; {of_how_many}", hint=newest.hint))
        elif self.fault:
            self.fault = ""
            _log.warning("the aggregator is well again: %s", of_how_many)

    def _forget(self, device: str) -> None:
        del self._heard[device]
        self._failing.pop(device, None)
