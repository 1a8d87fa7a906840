"""The agenda: what is to happen when. Of one moment, what was planned first happens first."""

import heapq
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Agenda"]

Event: TypeAlias = Callable[[], object]


class Agenda:
    """Calls by the moment at which they are due.

    A virtual fleet has few moments at which much happens, and many with one event each. The heap holds
    moments, which cost no more where a hundred thousand devices do the same at the same time.
    """

    __slots__ = ("_at", "_moments")

    def __init__(self) -> None:
        self._moments: list[float] = []
        self._at: dict[float, Event | deque[Event]] = {}

    def plan(self, at: float, event: Event) -> None:
        """Have something happen at a moment."""
        planned = self._at.get(at)
        if planned is None:
            heapq.heappush(self._moments, at)
            self._at[at] = event
        elif isinstance(planned, deque):
            planned.append(event)
        else:
            self._at[at] = deque((planned, event))

    def next_due(self) -> float | None:
        """When the next event is; None where none is planned."""
        return self._moments[0] if self._moments else None

    def happen(self, until: float, goes_on: Callable[[], bool] | None = None) -> int:
        """Let everything happen that is due by ``until``, and what that plans; how much it was. As soon as
        ``goes_on``, asked before each event, says no, what is left stays due."""
        count = 0
        moments = self._moments
        while moments and moments[0] <= until and (goes_on is None or goes_on()):
            at = moments[0]
            planned = self._at[at]
            if not isinstance(planned, deque):
                heapq.heappop(moments)
                del self._at[at]
                planned()
                count += 1
                continue
            while planned and moments[0] == at:  # an earlier one may be planned meanwhile
                planned.popleft()()
                count += 1
                if goes_on is not None and not goes_on():
                    break
            # An event may have cleared the agenda, or have let things happen itself.
            if not planned and moments and moments[0] == at and self._at[at] is planned:
                heapq.heappop(moments)
                del self._at[at]
        return count

    def clear(self) -> None:
        """Forget all that is planned."""
        for planned in self._at.values():
            if isinstance(planned, deque):  # its events may be happening now
                planned.clear()
        self._moments.clear()
        self._at.clear()
