"""When a version closes: K updates, or a deadline with fewer.

``fedbuff``: K as in Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation (2022).
``fedasync``: each update makes a version, as in Xie, Koyejo, Gupta, Asynchronous Federated Optimization
(2019). ``rounds``: the same buffer for a cohort, its deadline counted from the round's beginning.
"""

from dataclasses import dataclass

__all__ = ["BUFFERS", "Buffer"]

BUFFERS = ("fedbuff", "fedasync", "rounds")
LONGEST_STANDSTILL_S = 600.0
"""How long a version without a deadline waits for devices that may have had their say."""
LONGEST_WAIT_S = 600.0
SHORTEST_WAIT_S = 30.0
"""Within which an update that could not be taken comes again, where the buffer's deadline allows it."""
IN_ENDLESS_ROUND_S = 60.0
"""The same in a round that waits for all: it waits for this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """``size`` is K; ``flush_after_s`` 0 knows no deadline; ``min_updates`` is the least a deadline takes.

    ``by_round`` counts the deadline from when the version was opened, else from its first update.
    """

    size: int
    flush_after_s: float = 0.0
    min_updates: int = 1
    by_round: bool = False

    def closes(self, count: int, waited_s: float, set_aside: int = 0) -> str | None:
        """Why a version with ``count`` updates closes now: ``size``, ``deadline``, ``quarantine``, or not at
        all.

        ``waited_s`` is the time since the deadline began to count, ``set_aside`` how many more updates came
        and cannot be folded. Their devices count for this version, and no other update of theirs is taken: a
        fleet no larger than the buffer would wait for itself. So where nothing else came they count as come,
        with a deadline or without. Beside them no fewer updates are folded than ever: a rule that stands
        attackers needs its least.
        """
        if count >= self.size:
            return "size"
        if self._takes(count) and waited_s >= self.flush_after_s:
            return "deadline"
        if self._stands_still(count, set_aside) and waited_s >= self._patience_s:
            return "quarantine"
        return None

    def closes_in(self, count: int, waited_s: float, set_aside: int = 0) -> float | None:
        """Seconds until time alone may close it; None where only more updates will."""
        if self._takes(count):
            return max(self.flush_after_s - waited_s, 0.0)
        if self._stands_still(count, set_aside):
            return max(self._patience_s - waited_s, 0.0)
        return None

    def comes_again_s(self, waited_s: float) -> float:
        """How long an update waits with its device that could not be taken just now.

        In a round a third of what is left of it, so that it comes again twice before the close (a device
        waits up to half as long again), down to a sixth of the whole, or 30 s; else as long as a version
        waits, for a later one takes it too.
        """
        longest = min(self.flush_after_s or LONGEST_WAIT_S, LONGEST_WAIT_S)
        if not self.by_round:
            return longest
        if not self.flush_after_s:
            return IN_ENDLESS_ROUND_S
        left = self.flush_after_s - waited_s
        return min(max(left / 3.0, min(self.flush_after_s / 6.0, SHORTEST_WAIT_S)), longest)

    @property
    def _patience_s(self) -> float:
        return self.flush_after_s or LONGEST_STANDSTILL_S

    def _takes(self, count: int) -> bool:
        """Whether a deadline takes so many."""
        return self.flush_after_s > 0 and count >= self.min_updates

    def _stands_still(self, count: int, set_aside: int) -> bool:
        enough = self.min_updates if self.flush_after_s else self.size
        return count == 0 and set_aside >= enough
