"""The gates of a demo: ``python -m hil.gate FIGURES.json`` fails if a figure is out of its bounds.

With runtimes after the file (``onnx litert tflite numpy``) each of them must have folded updates too.
The bounds are those a single seed must hold; what ten seeds reach stands in docs/benchmarks.md.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["faults", "main"]

LOWEST_ACCURACY = 0.91
MOST_BYTES_PER_UPDATE = 800


def faults(figures: Mapping[str, Any], runtimes: Sequence[str] = ()) -> list[str]:
    """What is out of bounds, a sentence each; empty if all is well."""
    found = []
    if (figures["accuracy"] or 0.0) < LOWEST_ACCURACY:
        found.append(f"accuracy {figures['accuracy']} is below {LOWEST_ACCURACY}")
    if figures["bytes_up_per_update"] is not None and figures["bytes_up_per_update"] > MOST_BYTES_PER_UPDATE:
        found.append(f"{figures['bytes_up_per_update']} bytes an update, more than {MOST_BYTES_PER_UPDATE}")
    if figures["lost"] or figures["duplicated"] or not figures["balanced"]:
        found.append(f"{figures['lost']} updates lost, {figures['duplicated']} duplicated")
    if not figures["replay_ok"]:
        found.append("a version was not reproduced bit for bit")
    for runtime in runtimes:
        if not figures["runtimes"].get(runtime, {}).get("folded"):
            why = figures["runtimes_absent"].get(runtime, "it trained, or tried to, and nothing came of it")
            found.append(f"no update of {runtime} was folded: {why}")
    return found


def main(words: list[str]) -> int:
    """Check one file of figures, and that the runtimes named after it took part; the exit code."""
    if not words:
        sys.stderr.write("usage: python -m hil.gate FIGURES.json [RUNTIME...]\n")
        return 2
    found = faults(json.loads(Path(words[0]).read_text()), words[1:])
    sys.stdout.write("\n".join(found or ["all gates of the demo hold"]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
