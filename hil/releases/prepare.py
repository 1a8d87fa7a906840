"""Prepare a fleet's folder with the code of the release that runs this file; it is all that one asks of the
other beyond its commands.

``python prepare.py FOLDER OPTIONS``: OPTIONS are a JSON object of ``FleetOptions`` that every release has.
Prints the commands of its processes, each without the interpreter, as a JSON object by name.
"""

import json
import sys
from pathlib import Path

from hil.local_fleet import FleetOptions, LocalFleet


def main(folder: str, options: str) -> None:
    """Write artifact, samples, keys and configurations, and say how its processes are started."""
    fleet = LocalFleet(Path(folder), FleetOptions(**json.loads(options)))
    fleet.prepare()
    processes = {"coordinator": fleet.coordinator, **fleet.agents}
    # The first release kept the command to itself.
    place = "command" if hasattr(fleet.coordinator, "command") else "_command"
    words = {name: getattr(process, place)[1:] for name, process in processes.items()}
    sys.stdout.write(json.dumps(words))


if __name__ == "__main__":
    main(*sys.argv[1:])
