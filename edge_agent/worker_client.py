"""Workers as the supervisor sees them: a short-lived process, or the caller's own."""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edge_agent.frames import ReadBytes, pack_frame, read_frame
from edge_agent.jobs import Deliver, Job, JobFailed, Progress, Result, TrainJob
from fl_protocol.errors import MessageError

__all__ = ["InlineWorker", "ProcessWorker", "RunsJobs"]

_START_ALLOWANCE_S = 60.0
_SHORT_JOB_S = 60.0
_REAP_S = 10.0
_CANCELLED = JobFailed(reason="cancelled", retryable=True)
_log = logging.getLogger(__name__)


class RunsJobs(Protocol):
    """What an inline worker needs to work: see ``edge_agent.job_runner.JobRunner``."""

    def run(self, job: Job, report: Callable[[Progress], None], should_stop: Callable[[], bool]) -> Result:
        """The job's result."""
        ...


class InlineWorker:
    """Runs each job in the caller, within ``submit``. Several may share one runner."""

    def __init__(self, deliver: Deliver, runner: RunsJobs) -> None:
        self._deliver = deliver
        self._runner = runner
        self._job: Job | None = None
        self._cancelled = False
        self._stopped = False

    @property
    def busy(self) -> bool:
        """See ``Worker.busy``."""
        return self._job is not None

    @property
    def process_id(self) -> int | None:
        """``None``: there is no other process."""
        return None

    def submit(self, job: Job) -> None:
        """See ``Worker.submit``."""
        if self._stopped or self.busy:
            raise RuntimeError("the worker is stopped" if self._stopped else "the worker is busy")
        self._job, self._cancelled = job, False
        try:
            result = self._runner.run(job, lambda progress: self._deliver(job, progress), self._is_cancelled)
        finally:
            self._job = None
        self._deliver(job, _CANCELLED if self._cancelled else result)

    def cancel(self) -> None:
        """See ``Worker.cancel``; a training ends at its next step."""
        self._cancelled = self.busy

    def stop(self) -> None:
        """See ``Worker.stop``."""
        self._stopped = True
        self.cancel()

    def _is_cancelled(self) -> bool:
        return self._cancelled


class ProcessWorker:
    """Runs jobs in a child process, which lingers ``linger_s`` seconds for the next one and then ends.

    A child that crashes, is killed, or takes longer than ``deadline_factor`` times what its job is allowed
    gives ``JobFailed(retryable=True)``; the next job gets a new child. ``memory_bytes`` 0 means no limit. A
    training that is cancelled has ``grace_s`` seconds to end its step and to leave a checkpoint.
    """

    def __init__(
        self,
        deliver: Deliver,
        *,
        linger_s: float = 10.0,
        memory_bytes: int = 512 << 20,
        nice: int = 10,
        deadline_factor: float = 2.0,
        grace_s: float = 10.0,
    ) -> None:
        self._deliver = deliver
        self._linger_s = linger_s
        self._limits = (memory_bytes, nice)
        self._deadline_factor = deadline_factor
        self._grace_s = grace_s
        self._changed = threading.Condition()
        self._job: Job | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._attendant: threading.Thread | None = None
        self._cancelled = False
        self._stopped = False
        self._executioner: threading.Timer | None = None

    @property
    def busy(self) -> bool:
        """See ``Worker.busy``."""
        return self._job is not None

    @property
    def process_id(self) -> int | None:
        """See ``Worker.process_id``."""
        child = self._child
        return child.pid if child is not None else None

    def submit(self, job: Job) -> None:
        """See ``Worker.submit``."""
        with self._changed:
            if self._stopped or self.busy:
                raise RuntimeError("the worker is stopped" if self._stopped else "the worker is busy")
            self._job, self._cancelled = job, False
            if self._attendant is None:
                self._attendant = threading.Thread(target=self._attend, name="worker", daemon=True)
                self._attendant.start()
            self._changed.notify_all()

    def cancel(self) -> None:
        """See ``Worker.cancel``; the child is killed, if it trains after ``grace_s`` only."""
        with self._changed:
            if not self.busy or self._cancelled:
                return
            self._cancelled = True
            child = self._child
            if child is None or not isinstance(self._job, TrainJob) or self._grace_s <= 0:
                self._kill()
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child.pid, signal.SIGTERM)
            self._executioner = threading.Timer(self._grace_s, self._execute, (child,))
            self._executioner.daemon = True
            self._executioner.start()

    def stop(self) -> None:
        """See ``Worker.stop``."""
        with self._changed:
            self._stopped = True
            attendant = self._attendant
            self._changed.notify_all()
        self.cancel()
        if attendant is not None and attendant is not threading.current_thread():
            attendant.join(2 * _REAP_S)

    def _attend(self) -> None:
        """Stay with a child from its first job to its end.

        The child dies with the thread that made it (Linux counts threads there), so one thread does all.
        """
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self.busy or self._stopped, self._linger_s if self._child is not None else 0.0
                )
                job = self._job
                if job is None:
                    child, self._child, self._attendant = self._child, None, None
                    break
            result = self._run(job)
            with self._changed:
                self._job = None
                if self._executioner is not None:
                    self._executioner.cancel()
                    self._executioner = None
                if self._cancelled:  # perhaps too late for this job, but its child is being killed
                    result, killed, self._child = _CANCELLED, self._child, None
                else:
                    killed = None
            if killed is not None:
                _end(killed, after_s=0.0)
            self._hand_over(job, result)
        if child is not None:
            _end(child, after_s=_REAP_S)

    def _run(self, job: Job) -> Result:
        try:
            child = self._living_child()
        except OSError as error:
            return JobFailed(reason=f"no worker process can be started: {error.strerror}", retryable=True)
        reason = "it ended"
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            _write(child.stdin.fileno(), pack_frame(job))
            read = _reader(child.stdout.fileno(), time.monotonic() + self._allowance_s(job))
            while isinstance(result := read_frame(read), Progress):
                self._hand_over(job, result)
            if result is not None and not isinstance(result, Job):
                return result
        except TimeoutError:
            reason = f"it took longer than {self._allowance_s(job):.0f} s"
        except (OSError, MessageError) as error:
            reason = str(error)
        with self._changed:
            self._kill()
            self._child = None
        _end(child, after_s=0.0)
        return JobFailed(reason=f"the worker process failed: {reason}{_last_words(child)}", retryable=True)

    def _living_child(self) -> "subprocess.Popen[bytes]":
        with self._changed:
            if self._child is not None and self._child.poll() is not None:
                _end(self._child, after_s=0.0)  # killed while it lingered, by the kernel most likely
                self._child = None
            if self._child is None:
                self._child = _start(*self._limits)
            if self._cancelled:
                self._kill()
            return self._child

    def _kill(self) -> None:
        child = self._child
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)

    def _execute(self, child: "subprocess.Popen[bytes]") -> None:
        with self._changed:
            if self._child is child:
                self._kill()

    def _allowance_s(self, job: Job) -> float:
        own = job.plan.deadline_s if isinstance(job, TrainJob) else _SHORT_JOB_S
        return self._deadline_factor * own + _START_ALLOWANCE_S

    def _hand_over(self, job: Job, result: Result) -> None:
        try:
            self._deliver(job, result)
        except Exception:  # a thread that died here would leave the agent busy for ever
            _log.exception("a result could not be delivered")


def _start(memory_bytes: int, nice: int) -> "subprocess.Popen[bytes]":
    """Start a worker in a session of its own: Ctrl-C is the supervisor's to answer."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))
    return subprocess.Popen(
        # -P: a folder called models or edge_agent in the working directory must not hide ours.
        [sys.executable, "-P", "-m", "edge_agent.worker", str(memory_bytes), str(nice), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


def _end(child: "subprocess.Popen[bytes]", *, after_s: float) -> None:
    """Close the child's input, wait, kill what remains, and reap it."""
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        child.wait(after_s)
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_REAP_S)


def _last_words(child: "subprocess.Popen[bytes]") -> str:
    code = child.returncode
    if code is None:
        return ""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f" (ended by {signal.Signals(-code).name})"
    return f" (exit status {code})"


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _reader(descriptor: int, deadline: float) -> ReadBytes:
    """Read from a pipe until ``deadline`` (of ``time.monotonic``); TimeoutError beyond it."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)

    def read(count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                if time.monotonic() >= deadline:
                    raise TimeoutError
                continue
            piece = os.read(descriptor, min(count - len(content), 1 << 20))
            if not piece:
                break
            content += piece
        return bytes(content)

    return read
