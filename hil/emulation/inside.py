"""What runs under emulation: ``python -m hil.emulation.inside FOLDER RUNTIME...``.

Prints a line of JSON on the machine, then one for each artifact below FOLDER in each runtime. It imports what
a device has, and nothing of the builder.
"""

import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fl_protocol.artifact import MANIFEST_NAME
from models.runtime import TrainingArtifact, try_runtime

__all__ = ["main"]


def main(words: list[str]) -> int:
    """Try every runtime on every artifact."""
    folder, *runtimes = words
    about = {"machine": platform.machine(), "python": platform.python_version(), "byteorder": sys.byteorder}
    _say({**about, "numpy": np.__version__, "libc": " ".join(platform.libc_ver())})
    for path in sorted(Path(folder).rglob(MANIFEST_NAME)):
        artifact = TrainingArtifact.open(path.parent)
        for runtime in runtimes:
            trial = try_runtime(runtime, artifact)
            _say({"artifact": artifact.manifest.name, **asdict(trial)})
    return 0


def _say(body: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
