"""What a virtual device takes: a fleet of a hundred thousand has to fit into the memory of one machine."""

import gc
import tracemalloc

from hil.bench.small_fleet import small_fleet

MOST_BYTES = 12_000
"""Of Python's objects, for a device whose first update was accepted: CPython 3.11 takes 10,800. What SQLite
keeps for it, some 2,500 bytes, is not among them."""
FEW, MANY = 100, 300


def held(count: int) -> int:
    """The bytes that Python's objects take when the first version is made."""
    found = 0

    def note(fleet):
        nonlocal found
        if fleet.coordinator.version.number and not found:
            gc.collect()
            found = tracemalloc.get_traced_memory()[0]

    small_fleet("stacked", count, 1, progress=note)
    return found


def test_a_device_takes_few_bytes():
    """A dictionary too many on each device shows."""
    tracemalloc.start()
    try:
        held(FEW)  # what comes with the first fleet alone
        few, many = held(FEW), held(MANY)
    finally:
        tracemalloc.stop()
    assert (many - few) / (MANY - FEW) < MOST_BYTES
