"""The machine's clock."""

import time

__all__ = ["SystemClock"]


class SystemClock:
    """CLOCK_BOOTTIME where there is one: it goes on while the machine sleeps, and no one sets it."""

    def monotonic(self) -> float:
        """Seconds since boot."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970 as the machine believes; for people to read."""
        return time.time()
