"""Two thousand connected devices on one coordinator, and a stop of it half-way."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hil.load.fleet import LightFleet, LoadOptions

__all__ = ["load"]

STALL_S = 3.0


def load() -> dict[str, Any]:
    """Run the load at its defaults.

    Raises:
        LichenError: see ``LightFleet.run``.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = LightFleet(Path(folder) / "fleet", LoadOptions(stall_s=STALL_S)).run()
    return {**asdict(report), "stall_s": STALL_S}
