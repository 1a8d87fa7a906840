"""A board: one device that is not, or not only, simulated, as a scenario sees it.

A scenario (``hil.boards.scenarios``) knows nothing but this and the site, so that it runs unchanged on local
processes, in network namespaces, on emulated boards, and on real ones. A board is made for one device of one
site: it takes the credential that ``Site.enroll`` gives, the samples of ``Site.samples``, and brings both to
where its agent looks for them.
"""

from pathlib import Path
from typing import Any, Protocol

from fl_protocol.errors import LichenError

__all__ = ["ABILITIES", "CUT", "Board", "BoardFailure"]

ABILITIES = frozenset({"power", "link", "disk", "clock"})
"""Faults that a board can be given; a scenario that needs one which it lacks is skipped, and says so."""
CUT = "cut"
"""The link that carries nothing: connections stay, nobody is told."""


class BoardFailure(LichenError):
    """A board, or the site, did not do what it was asked to, or not in time."""


class Board(Protocol):
    """One device. Every method has worked when it returns, within a bounded time, or raises."""

    device: str
    """Its id in the fleet."""
    abilities: frozenset[str]
    """Of ``ABILITIES``: the faults that it can be given."""
    slowness: float
    """How many times longer than a local process everything may take here; waits are multiplied by it."""

    def start(self) -> None:
        """Power on; returns when the agent's process, or its machine, is under way.

        Raises:
            BoardFailure: it does not start.
        """

    def stop(self) -> None:
        """Shut down in order: the agent has ended by itself when this returns."""

    def cut_power(self) -> None:
        """At once, nothing flushed; ``start`` boots again from what the storage holds."""

    def link(self, profile: str) -> None:
        """Have a link like this until the next call: a name of ``hil/profiles``, the path of a profile of
        one's own, or ``cut``. It may be called before ``start``."""

    def fill_disk(self) -> None:
        """Leave not a byte where the agent keeps its state."""

    def free_disk(self) -> None:
        """Take away what ``fill_disk`` left, if anything."""

    def set_clock(self, unix_s: float) -> None:
        """Let the device believe that it is ``unix_s`` seconds after 1970 now; its clock goes on from there.
        It may be called before ``start``."""

    def status(self) -> dict[str, Any]:
        """What ``lichen-agent status --json`` says; empty before the first, and while it is unreachable."""

    def books(self) -> Path | None:
        """A folder on this machine with the agent's books (``agent.db``), as of now, for ``lichen audit
        --agents``; None where they cannot be had. A scenario asks after ``stop``."""

    def logs(self) -> str:
        """What the agent, and the machine where that is the board's own, has said."""

    def close(self) -> None:
        """Everything ended and removed, whatever state it is in; more than once does no harm."""
