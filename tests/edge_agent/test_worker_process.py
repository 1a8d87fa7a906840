"""The worker process: it may crash, hang, eat memory or lose its parent, and the agent goes on."""

import os
import queue
import signal
import subprocess
import sys
import time

import psutil
import pytest

from edge_agent import worker_client
from edge_agent.frames import pack_frame
from edge_agent.jobs import JobFailed, Progress, Trained, VerifyJob
from edge_agent.worker_client import ProcessWorker
from fl_protocol.plan import TrainingPlan

WAIT_S = 60
_TRAINERS = """
import os, sys, time
from pathlib import Path
class Waits:
    def evaluate(self, weights, samples): return {}
    def train(self, weights, samples, plan, should_stop):
        Path(__file__).with_name("begun").touch()
        time.sleep(600)
class Crashes(Waits):
    def train(self, weights, samples, plan, should_stop):
        os.abort()
class Exits(Waits):
    def train(self, weights, samples, plan, should_stop):
        os._exit(3)
class Eats(Waits):
    def train(self, weights, samples, plan, should_stop):
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))
class Looks(Waits):
    def train(self, weights, samples, plan, should_stop):
        from edge_agent.trainer import TrainingResult
        import resource
        seen = [os.nice(0), Path("/proc/self/oom_score_adj").read_text().strip(),
                resource.getrlimit(resource.RLIMIT_DATA)[0], os.environ["OMP_NUM_THREADS"]]
        Path(__file__).with_name("seen").write_text(repr(seen))
        return TrainingResult(weights, steps=1)
"""


@pytest.fixture
def arrived():
    return queue.Queue()


@pytest.fixture
def make(arrived):
    """Make a worker; all are stopped at the end."""
    made: list[ProcessWorker] = []

    def worker(**options) -> ProcessWorker:
        made.append(ProcessWorker(lambda job, result: arrived.put(result), **{"linger_s": 30} | options))
        return made[-1]

    yield worker
    for one in made:
        one.stop()


@pytest.fixture
def user_job(tmp_path, train_job):
    """Make a job for one of the trainers above."""
    (tmp_path / "odd_trainers.py").write_text(_TRAINERS)
    return lambda name, **changes: train_job(
        trainer=f"odd_trainers:{name}", trainer_path=str(tmp_path), **changes
    )


@pytest.fixture
def begun(tmp_path):
    """Wait until the trainer ``Waits`` is in training."""

    def wait() -> None:
        until = time.monotonic() + WAIT_S
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until
            os.sched_yield()

    return wait


def result_of(arrived) -> object:
    while isinstance(result := arrived.get(timeout=WAIT_S), Progress):
        pass
    return result


def gone(pid: int) -> None:
    until = time.monotonic() + WAIT_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, f"process {pid} is still there"
        os.sched_yield()


@pytest.mark.parametrize(
    ("trainer", "says"),
    [("Crashes", "SIGABRT"), ("Exits", "exit status 3")],
)
def test_a_worker_that_crashes_is_a_failure_that_may_be_tried_again(make, arrived, user_job, trainer, says):
    """The reason names how it ended; the next job gets a new process."""
    worker = make()
    worker.submit(user_job(trainer))
    failed = result_of(arrived)
    assert isinstance(failed, JobFailed)
    assert failed.retryable
    assert says in failed.reason
    worker.submit(VerifyJob(envelope=b"", context=b"", trusted_keys=()))
    assert not result_of(arrived).ok


def test_a_worker_killed_in_training(make, arrived, user_job, begun, train_job):
    """As the kernel does when memory runs out."""
    worker = make()
    worker.submit(user_job("Waits"))
    begun()
    os.kill(worker.process_id, signal.SIGKILL)
    failed = result_of(arrived)
    assert failed.retryable
    assert "SIGKILL" in failed.reason
    worker.submit(train_job())
    assert isinstance(result_of(arrived), Trained)


def test_a_worker_killed_while_it_lingers_costs_no_job(make, arrived, train_job):
    """The next job just starts another."""
    worker = make()
    worker.submit(train_job())
    assert isinstance(result_of(arrived), Trained)
    first = worker.process_id
    os.kill(first, signal.SIGKILL)
    gone(first)
    worker.submit(train_job())
    assert isinstance(result_of(arrived), Trained)
    assert worker.process_id != first


def test_a_worker_that_hangs_is_killed(make, arrived, user_job, monkeypatch):
    """A native call that never returns cannot be asked to stop."""
    monkeypatch.setattr(worker_client, "_START_ALLOWANCE_S", 0.5)
    worker = make(deadline_factor=1.5)
    worker.submit(user_job("Waits", plan=TrainingPlan(deadline_s=1.0)))
    failed = result_of(arrived)
    assert failed.retryable
    assert "took longer than 2 s" in failed.reason
    assert worker.process_id is None


def test_memory_is_limited(make, arrived, user_job, train_job):
    """The job fails cleanly, in the same process, which goes on to the next one."""
    worker = make(memory_bytes=256 << 20)
    worker.submit(user_job("Eats"))
    assert result_of(arrived) == JobFailed(reason="not enough memory for this job", retryable=True)
    process = worker.process_id
    worker.submit(train_job(runtimes=("onnx", "numpy")))
    assert isinstance(result_of(arrived), Trained)
    assert worker.process_id == process


def test_a_worker_gives_way_to_everything_else(make, arrived, user_job, tmp_path):
    """Niced, first in line when memory runs out, limited, and on one thread."""
    worker = make(nice=7, memory_bytes=400 << 20)
    worker.submit(user_job("Looks"))
    assert isinstance(result_of(arrived), Trained)
    assert (tmp_path / "seen").read_text() == repr([7 + os.nice(0), "1000", 400 << 20, "1"])


def test_a_worker_ends_when_there_is_no_more_to_do(make, arrived, train_job):
    """Its memory goes back to the device."""
    worker = make(linger_s=0.0)
    worker.submit(train_job())
    process = worker.process_id
    assert isinstance(result_of(arrived), Trained)
    if process is not None:
        gone(process)
    worker.submit(train_job())
    assert isinstance(result_of(arrived), Trained)


def test_checking_a_signature_loads_no_array_library(make, arrived):
    """A small device checks every manifest; that must stay cheap."""
    worker = make()
    worker.submit(VerifyJob(envelope=b"", context=b"", trusted_keys=()))
    result_of(arrived)
    maps = {entry.path for entry in psutil.Process(worker.process_id).memory_maps()}
    assert not [path for path in maps if "/numpy/" in path or "/onnxruntime/" in path]


_PARENT = """
import sys, time
from edge_agent.jobs import VerifyJob
from edge_agent.worker_client import ProcessWorker
worker = ProcessWorker(lambda job, result: print(worker.process_id, flush=True), linger_s=600)
worker.submit(VerifyJob(envelope=b"", context=b"", trusted_keys=()))
assert not {"numpy", "cryptography", "asyncio"} & set(sys.modules), "the supervisor's side is too heavy"
time.sleep(600)
"""


def test_a_worker_dies_with_its_parent():
    """kill -9 of the agent leaves no orphan."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout as stdout:
        process = int(stdout.readline())
        assert psutil.pid_exists(process)
        parent.kill()
        parent.wait(WAIT_S)
    gone(process)


def test_a_worker_whose_parent_hears_no_more_ends_without_a_word():
    """kill -9 of the agent closes its pipes before the kernel gets to the worker, whose result has nowhere to
    go then: no fault of its own, and no traceback in the agent's log (seed 21 of the breaker)."""
    words = [sys.executable, "-m", "edge_agent.worker", "0", "0", str(os.getpid())]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as worker:
        worker.stdout.close()
        worker.stdin.write(pack_frame(VerifyJob(envelope=b"", context=b"", trusted_keys=())))
        worker.stdin.flush()
        assert worker.wait(WAIT_S) == 0
        assert worker.stderr.read() == b""


def test_a_worker_started_by_someone_else_does_nothing():
    """A parent that died before the kernel was asked to tell."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent.worker", "0", "0", "1"],
        input=b"",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
