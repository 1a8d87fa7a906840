"""Processes that take training steps when they are asked to, and say how long each took.

One process for each runtime, PyTorch among them: they take turns, so that a busy moment of the machine hits
all of them alike, and each runs under the interpreter that has what it needs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType

from fl_protocol.errors import LichenError

__all__ = ["StepProcess", "serve", "take_turns"]

ROUNDS = 30
STEPS = 4
"""Steps of one turn; the fastest counts, the first finds cold caches."""


def serve(step: Callable[[], object]) -> None:
    """Answer each line of standard input, a number of steps, with a line: the seconds of the fastest."""
    for line in sys.stdin:
        fastest = float("inf")
        for _ in range(int(line)):
            started = perf_counter()
            step()
            fastest = min(fastest, perf_counter() - started)
        sys.stdout.write(json.dumps(fastest) + "\n")
        sys.stdout.flush()


class StepProcess:
    """A process that serves; it ends with the ``with`` block."""

    def __init__(self, python: str, words: Sequence[str], *, folder: Path) -> None:
        self._child = subprocess.Popen(
            [python, "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "StepProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()
        self._child.communicate()

    def fastest_s(self, steps: int = STEPS) -> float:
        """Take some steps; the seconds of the fastest.

        Raises:
            LichenError: the process has ended, with what it said.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(f"{steps}\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            _, said = self._child.communicate()
            raise LichenError(f"a process that takes steps has ended: {said[-2000:]}")
        return float(json.loads(answer))


def take_turns(processes: Mapping[str, StepProcess]) -> dict[str, list[float]]:
    """The seconds of each process's fastest step in each round."""
    for process in processes.values():
        process.fastest_s(2)
    times: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(ROUNDS):
        for name, process in processes.items():
            times[name].append(process.fastest_s())
    return times
