"""The machine's clock."""

import subprocess
import sys

from fl_io.clock import SystemClock


def test_the_clock_never_goes_back():
    """Intervals come from it."""
    clock = SystemClock()
    times = [clock.monotonic() for _ in range(100)]
    assert times == sorted(times)
    assert clock.wall() > 1.7e9


def test_the_io_layer_loads_neither_numpy_nor_cryptography():
    """The agent's supervisor sleeps for weeks with these modules in memory, and no others."""
    script = (
        "import sys, fl_io.clock, fl_io.configuration, fl_io.disk, fl_io.ed25519, fl_io.mqtt\n"
        "import fl_protocol.task, fl_protocol.update, fl_protocol.receipt, fl_protocol.presence\n"
        "import fl_protocol.command, fl_protocol.artifact, fl_protocol.signed, fl_protocol.codec.spec\n"
        "heavy = {'numpy', 'cryptography', 'asyncio', 'onnx', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == "[]"
