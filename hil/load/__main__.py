"""``python -m hil.load``: thousands of connected devices on one coordinator."""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from fl_protocol.errors import LichenError
from hil.load.fleet import LightFleet, LoadOptions

__all__ = ["main"]


def main(words: list[str] | None = None) -> int:
    """Run one load: 0 if every update was accepted, every device had one, and the books balance."""
    parser = argparse.ArgumentParser(prog="python -m hil.load", description=__doc__)
    defaults = LoadOptions()
    parser.add_argument("--devices", type=int, default=defaults.devices)
    parser.add_argument("--updates", type=int, default=defaults.updates, help="of all devices together")
    parser.add_argument("--buffer", type=int, default=defaults.buffer, help="updates of a version")
    parser.add_argument("--training-s", type=float, default=defaults.training_s, help="longest, per update")
    parser.add_argument("--ramp-s", type=float, default=defaults.ramp_s, help="devices connect within")
    parser.add_argument(
        "--stall-s", type=float, default=defaults.stall_s, help="stop the coordinator so long"
    )
    parser.add_argument("--broker", default=defaults.broker, help="auto, mosquitto, amqtt, or a URL")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = vars(parser.parse_args(words))
    as_json = given.pop("json")
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = LightFleet(Path(folder) / "fleet", LoadOptions(**given)).run()
        except LichenError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
    body = asdict(report)
    if as_json:
        sys.stdout.write(json.dumps(body) + "\n")
    else:
        sys.stdout.writelines(f"{name:18} {value}\n" for name, value in body.items())
    return 0 if report.accepted == report.updates and report.fewest > 0 and report.balanced else 1


if __name__ == "__main__":
    sys.exit(main())
