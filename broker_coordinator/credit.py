"""Credit: the bytes that devices were told they may send now.

The sum stays below the ingest window, so that a fleet that comes back at once cannot fill the memory of
broker and coordinator. Credit that a silent device holds returns after a while.
"""

from collections import OrderedDict
from dataclasses import dataclass

from fl_protocol.blob import CHUNK_BYTES

__all__ = ["CreditWindow"]

PER_UPDATE_BYTES = 512 << 10
IDLE_S = 60.0


@dataclass(slots=True)
class _Grant:
    left: int
    touched: float


class CreditWindow:
    """Grants by update id; times in seconds of a monotonic clock."""

    def __init__(self, window_bytes: int, *, per_update: int = PER_UPDATE_BYTES) -> None:
        self._window = window_bytes
        self._per_update = min(per_update, window_bytes)
        self._grants: OrderedDict[bytes, _Grant] = OrderedDict()
        self.granted = 0
        """Bytes of open credit."""

    def grant(self, update_id: bytes, wanted: int, now: float) -> int:
        """Bytes this update may send now, in place of what it held: all it wants, or whole chunks; 0 if
        the window is full."""
        self.release(update_id)
        self._expire(now)
        amount = min(wanted, self._per_update, self._window - self.granted)
        if amount < wanted:
            amount -= amount % CHUNK_BYTES
        if amount <= 0:
            return 0
        self._grants[update_id] = _Grant(amount, now)
        self.granted += amount
        return amount

    def spend(self, update_id: bytes, amount: int, now: float) -> bool:
        """Bytes arrived; whether the update has none left."""
        grant = self._grants.get(update_id)
        if grant is None:
            return True
        used = min(amount, grant.left)
        grant.left -= used
        grant.touched = now
        self.granted -= used
        self._grants.move_to_end(update_id)
        if grant.left == 0:
            del self._grants[update_id]
            return True
        return False

    def release(self, update_id: bytes) -> None:
        """Take back what an update holds."""
        grant = self._grants.pop(update_id, None)
        if grant is not None:
            self.granted -= grant.left

    def _expire(self, now: float) -> None:
        while self._grants:
            update_id, grant = next(iter(self._grants.items()))
            if now - grant.touched < IDLE_S:
                return
            self.release(update_id)
