"""The lookout: what this device's own gates say, asked anew every half minute."""

import logging
from pathlib import Path

from edge_agent.configuration import GateSettings
from edge_agent.gates import Machine, shut_gate, surroundings
from edge_agent.sample_count import CountSamples, count_samples
from fl_protocol.clock import Clock
from fl_protocol.errors import StorageError

__all__ = ["LOOK_EVERY_S", "Lookout"]

LOOK_EVERY_S = 30.0
LEAVE_AFTER_S = 300.0
REJOIN_WAIT_S = 3.0
_log = logging.getLogger("lichen.agent")


class Lookout:
    """The gates of one device. ``samples`` and ``held_out`` count those in its store, ``next_at`` is the
    time of the next look."""

    __slots__ = (
        "_clock",
        "_count_samples",
        "_machine",
        "_samples_path",
        "_settings",
        "_shut",
        "_shut_since",
        "_unreadable",
        "held_out",
        "next_at",
        "samples",
    )

    def __init__(
        self,
        settings: GateSettings,
        samples_path: Path,
        *,
        machine: Machine,
        clock: Clock,
        count: CountSamples = count_samples,
    ) -> None:
        self.samples = 0
        self.held_out = 0
        self.next_at = 0.0
        self._settings = settings
        self._samples_path = samples_path
        self._machine = machine
        self._clock = clock
        self._count_samples = count
        self._shut: str | None = None
        self._shut_since: float | None = None
        self._unreadable = ""
        self._count()

    @property
    def left(self) -> bool:
        """Whether the gates are shut for so long that new versions are of no use here."""
        since = self._shut_since
        return since is not None and self._clock.monotonic() - since >= LEAVE_AFTER_S

    @property
    def standing(self) -> str:
        """Which gate has been shut for so long; empty where none has."""
        return (self._shut or "") if self.left else ""

    def shut(self, *, in_training: bool = False) -> str | None:
        """Why this device must not train now; ``None`` when its gates are open."""
        now = self._clock.monotonic()
        if now >= self.next_at:
            self.next_at = now + LOOK_EVERY_S
            self._count()
            was_left = self.left
            around = surroundings(self._machine, self._clock, self.samples)
            gate = shut_gate(self._settings, around, in_training=in_training)
            # A training under way has its samples, or will say itself that it has not.
            self._shut = gate if in_training else self._unreadable or gate
            if self._shut is None:
                self._shut_since = None
                if was_left:
                    # The manifest in hand is old: the newest one comes with the subscription.
                    self._shut = "back after a long pause, asking for the newest version"
                    self.next_at = now + REJOIN_WAIT_S
            elif self._shut_since is None:
                self._shut_since = now
        return self._shut

    def look_again(self) -> None:
        """Answer the next question from a fresh look."""
        self.next_at = 0.0

    def unasked(self) -> None:
        """The task itself has nothing to do for this device: its gates keep it from nothing."""
        self._shut_since = None

    def _count(self) -> None:
        try:
            self.samples, self.held_out = self._count_samples(self._samples_path)
            self._unreadable = ""
        except StorageError as error:
            self.samples = self.held_out = 0
            reason = f"{error.args[0]}"
            if reason != self._unreadable:
                _log.warning("%s", error)
            self._unreadable = reason
