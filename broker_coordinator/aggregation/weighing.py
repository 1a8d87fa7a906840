"""Weighing: what has become of updates so far under a rule of the user's, and so whose fault a failure is.

A rule can fail on one update alone: it divides by a loss of 0, or takes the exponential of a huge one. Such
an update stays with its device, and nobody waits for it. Whether the rule is at fault too is a matter of how
many devices it fails on: none of them alone may give a sound rule a bad name.
"""

import logging
from collections.abc import Iterable

from fl_protocol.errors import AggregatorError

__all__ = ["MOST_METRICS", "Weighing"]

MOST_METRICS = 256
"""Names of metrics that are remembered: what devices call them is theirs."""
MOST_DEVICES = 256
"""Devices that are remembered, and named in the log once each."""
_log = logging.getLogger("lichen.coordinator")


class Weighing:
    """``reported`` names metrics that the rule has asked for, and found in updates that were accepted;
    ``fault`` is what is wrong with the rule, empty where nothing is known."""

    def __init__(self) -> None:
        self.reported: set[str] = set()
        self.fault = ""
        self._proven = False
        self._failing: set[str] = set()
        self._told: set[str] = set()

    def took(self, asked: Iterable[frozenset[str]]) -> None:
        """Updates were accepted: ``asked`` are the metrics that the rule asked each for, and got."""
        for names in asked:
            if len(self.reported) < MOST_METRICS:
                self.reported |= names
            self._proven, self.fault = True, ""
            self._failing.clear()

    def failed(self, device: str, error: AggregatorError) -> None:
        """The rule failed on an update of ``device``."""
        if len(self._failing) < MOST_DEVICES:
            self._failing.add(device)
        if not self._proven or len(self._failing) > 1:
            self.fault = str(error)
        if device not in self._told and len(self._told) < MOST_DEVICES:
            self._told.add(device)
            _log.warning("%s", error)
