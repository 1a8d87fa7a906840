"""Whether a runtime trains an artifact here: tried before a fleet of it is started.

``python -m hil.trial ARTIFACT RUNTIME`` does it in a process of its own, under any interpreter.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from models.runtime import RUNTIMES, TrainingArtifact, try_runtime
from models.runtime.static_batch import StaticBatchSession

__all__ = ["Trial", "attempt", "attempt_in", "main"]

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """``reason`` is empty where the runtime works; ``rows`` is the longest batch it takes, None: any."""

    reason: str = ""
    rows: int | None = None


def attempt(artifact: TrainingArtifact, runtime: str) -> Trial:
    """Open the artifact and run its golden steps, in this process."""
    reason, _, hint = try_runtime(runtime, artifact).reason.partition("\n  hint: ")
    if reason:
        return Trial(reason=f"{reason} ({hint})" if hint else reason)
    session = RUNTIMES[runtime].open(artifact)
    return Trial(rows=session.rows if isinstance(session, StaticBatchSession) else None)


def attempt_in(python: str, artifact: Path, runtime: str) -> Trial:
    """The same in a process of its own, under an interpreter."""
    words = [python, "-P", "-m", "hil.trial", str(artifact.absolute()), runtime]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Trial(reason=f"{python} cannot be run: {error}")
    try:
        return Trial(**json.loads(done.stdout))
    except (ValueError, TypeError):
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return Trial(reason=f"{python}: {said}")


def main(words: list[str]) -> int:
    """Try, and print the trial as JSON."""
    folder, runtime = words
    sys.stdout.write(json.dumps(asdict(attempt(TrainingArtifact.open(folder), runtime))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
