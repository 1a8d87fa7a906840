"""When a version closes: K updates, or a deadline with fewer.

``fedbuff``: K as in Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation (2022).
``fedasync``: each update makes a version, as in Xie, Koyejo, Gupta, Asynchronous Federated Optimization
(2019). ``rounds``: the same buffer for a cohort, its deadline counted from the round's beginning.
"""

from dataclasses import dataclass

__all__ = ["BUFFERS", "Buffer"]

BUFFERS = ("fedbuff", "fedasync", "rounds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """``size`` is K; ``flush_after_s`` 0 knows no deadline; ``min_updates`` is the least a deadline takes.

    ``by_round`` counts the deadline from when the version was opened, else from its first update.
    """

    size: int
    flush_after_s: float = 0.0
    min_updates: int = 1
    by_round: bool = False

    def closes(self, count: int, waited_s: float) -> str | None:
        """Why a version with ``count`` updates closes now: ``size``, ``deadline``, or not at all.

        ``waited_s`` is the time since the deadline began to count.
        """
        if count >= self.size:
            return "size"
        if self.flush_after_s and count >= self.min_updates and waited_s >= self.flush_after_s:
            return "deadline"
        return None

    def closes_in(self, count: int, waited_s: float) -> float | None:
        """Seconds until the deadline may close it; None where only more updates will."""
        if not self.flush_after_s or count < self.min_updates:
            return None
        return max(self.flush_after_s - waited_s, 0.0)
