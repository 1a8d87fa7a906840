"""The worker process: ``python -m edge_agent.worker MEMORY_BYTES NICE PARENT``.

Jobs come on standard input and results leave on standard output, as frames, until the input ends. SIGTERM
ends a training between two of its steps, after it has left a checkpoint, and then the process. What a
library prints goes to standard error. The process runs at low priority under a memory limit, is the first
to go when memory runs out, and dies with its parent: a runtime that crashes takes nothing else along.
"""

import contextlib
import ctypes
import logging
import os
import resource
import select
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from edge_agent.frames import ReadBytes, pack_frame, read_frame
from edge_agent.jobs import Result

if TYPE_CHECKING:
    from edge_agent.jobs import Job

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(arguments: list[str]) -> int:
    """Serve jobs until the input ends; 0, or 2 where the parent is gone already."""
    memory_bytes, nice, parent = (int(argument) for argument in arguments)
    jobs, results = _take_streams()
    if not _die_with(parent):
        return 2
    _step_back(memory_bytes, nice)
    logging.basicConfig(stream=sys.stderr, format="worker: %(message)s")
    from edge_agent.job_runner import JobRunner
    from fl_io.clock import SystemClock

    runner = JobRunner(clock=SystemClock())
    told = _Told()
    signal.signal(signal.SIGTERM, told.take)

    def send(result: Result) -> None:
        content = memoryview(pack_frame(result))
        try:
            while content:
                content = content[os.write(results, content) :]
        except BrokenPipeError:
            # The supervisor was killed: its files close a moment before the kernel ends us, too.
            os._exit(0)

    def ended() -> bool:
        """One job is out at a time, so input during a job is its end: nobody waits for the result."""
        return told.to_end or bool(select.select([jobs], [], [], 0)[0])

    while not told.to_end and (job := read_frame(_reader(jobs))) is not None:
        told.at_work = True
        send(runner.run(_checked(job), send, ended))
        told.at_work = False
    return 0


class _Told:
    """Whether this process was told to end: at once where it waits for a job, else as the job ends."""

    def __init__(self) -> None:
        self.to_end = False
        self.at_work = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """Take the signal."""
        self.to_end = True
        if not self.at_work:
            os._exit(0)


def _checked(value: "Job | Result") -> "Job":
    from edge_agent.jobs import PrepareJob, TrainJob, VerifyJob

    if not isinstance(value, VerifyJob | PrepareJob | TrainJob):
        raise SystemExit(f"the supervisor sent a {type(value).__name__}, which is no job")
    return value


def _take_streams() -> tuple[int, int]:
    """Keep the two pipes for frames alone, for native code too: 0 becomes empty, 1 becomes 2."""
    jobs, results = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return jobs, results


def _die_with(parent: int) -> bool:
    """Ask the kernel to kill this process when its parent dies; ``False`` if that has happened.

    Elsewhere than on Linux the end of the input has to do.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def _step_back(memory_bytes: int, nice: int) -> None:
    """Give way to everything else on the device.

    The limit is on RLIMIT_DATA, which counts what a process writes; RLIMIT_AS would count mapped
    libraries and the reserves of a runtime's allocator too.
    """
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    with contextlib.suppress(OSError):
        os.nice(nice)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    if memory_bytes:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _reader(descriptor: int) -> ReadBytes:
    def read(count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            piece = os.read(descriptor, min(count - len(content), 1 << 20))
            if not piece:
                break
            content += piece
        return bytes(content)

    return read


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
