"""Checkpoints: a training that goes on gives the same bits, and anything else is thrown away."""

import os
import queue
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulated_disk import PowerCut, SimulatedDisk

from edge_agent.checkpoint import LITTLE_WORK_S, Checkpoint, read_checkpoint
from edge_agent.job_runner import JobRunner
from edge_agent.jobs import JobFailed, Progress, Trained
from edge_agent.samples import SampleStore
from edge_agent.worker_client import ProcessWorker
from fl_io.clock import SystemClock
from fl_protocol.clock import ManualClock
from fl_protocol.plan import TrainingPlan
from models.zoo import digits

WAIT_S = 60
PLAN = TrainingPlan(epochs=3, batch_size=16, lr=0.2, momentum=0.9, mu=0.01, clip=5.0)


@pytest.fixture
def job(train_job, tmp_path):
    """A training that leaves a checkpoint after each step."""
    return train_job(
        plan=PLAN, codec="float32", checkpoint_path=str(tmp_path / "checkpoint"), checkpoint_every_s=0.0
    )


def run(job, stop=lambda: False):
    return JobRunner(clock=SystemClock()).run(job, lambda progress: None, stop)


def stop_after(steps):
    """Cancels when asked for the so many-eth time: it is asked up to three times a step."""
    asked = iter(range(10_000))
    return lambda: next(asked) >= steps


@pytest.mark.parametrize("runtime", ["numpy", "onnx"])
@pytest.mark.parametrize("asked", [3, 20])
def test_a_training_that_goes_on_gives_the_same_bits(job, runtime, asked):
    """Momentum, the anchor of FedProx, the order of the batches, the gradient norm: all as if it never
    stopped."""
    job = replace(job, runtimes=(runtime,))
    whole = run(replace(job, checkpoint_path=""))
    assert run(job, stop_after(asked)) == JobFailed(reason="cancelled", retryable=True)
    saved = read_checkpoint(Path(job.checkpoint_path))
    assert 0 < saved.steps < whole.steps_planned
    went_on = run(job)
    assert went_on.payload == whole.payload
    assert went_on.metrics == whole.metrics
    assert (went_on.steps_done, went_on.steps_planned) == (whole.steps_done, whole.steps_planned)
    assert whole.metrics["after.grad_norm"] > 0


def test_a_training_that_goes_on_takes_only_the_steps_that_were_left(job):
    """Progress says where it is; nothing is trained twice."""
    run(job, stop_after(20))
    steps = read_checkpoint(Path(job.checkpoint_path)).steps
    seen: list[Progress] = []
    runner = JobRunner(clock=TickingClock())
    assert isinstance(runner.run(job, seen.append, lambda: False), Trained)
    assert [progress.steps_done for progress in seen] == list(range(steps, seen[-1].steps_planned))


class TickingClock:
    """A second passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now

    def wall(self) -> float:
        return 0.0


@pytest.mark.parametrize("changed", ["base", "plan", "seed", "state", "samples"])
def test_a_checkpoint_of_another_training_is_thrown_away(job, version, changed, tmp_path):
    """Its update is the one that it would have been without."""
    store = tmp_path / "samples.db"
    images = digits.load()
    with SampleStore(store) as samples:
        ids = samples.extend(images.x[:100], images.y[:100])
    job = replace(job, samples_path=str(store))
    run(job, stop_after(20))
    match changed:
        case "base":
            job = replace(job, base=version(2))
        case "plan":
            job = replace(job, plan=replace(PLAN, lr=0.1))
        case "seed":
            job = replace(job, device_seed=b"other")
        case "state":
            job = replace(job, device_state=b"other")
        case "samples":
            with SampleStore(store) as samples:
                for sample_id in ids[:20]:
                    samples.delete(sample_id)
    afresh = run(replace(job, checkpoint_path=""))
    assert run(job).payload == afresh.payload


def test_samples_that_came_since_wait_for_the_next_training(job, tmp_path):
    """A device that collects all day would otherwise never go on with anything."""
    store = tmp_path / "samples.db"
    images = digits.load()
    with SampleStore(store) as samples:
        samples.extend(images.x[:100], images.y[:100])
    job = replace(job, samples_path=str(store))
    whole = run(replace(job, checkpoint_path=""))
    run(job, stop_after(20))
    with SampleStore(store) as samples:
        samples.extend(images.x[100:150], images.y[100:150])
    went_on = run(job)
    assert went_on.payload == whole.payload
    assert went_on.num_examples == whole.num_examples


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "flipped"])
def test_a_damaged_checkpoint_costs_the_steps_in_it_and_nothing_else(job, content):
    """It is removed, and the training begins anew."""
    path = Path(job.checkpoint_path)
    run(job, stop_after(20))
    if content == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert run(job).payload == run(replace(job, checkpoint_path="")).payload


def test_a_failure_that_would_come_again_takes_its_checkpoint_along(job, tmp_path, monkeypatch):
    """Weights that are not finite would be not finite again."""
    (tmp_path / "bad_trainer.py").write_text(
        "import numpy as np\nimport lichen\n"
        "class Bad:\n"
        "    checkpoint = None\n"
        "    def evaluate(self, weights, samples): return {}\n"
        "    def train(self, weights, samples, plan, should_stop):\n"
        "        bad = {k: v * np.nan for k, v in weights.items()}\n"
        "        self.checkpoint.offer(1, lambda: bad)\n"
        "        return lichen.TrainingResult(bad, steps=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    failed = run(replace(job, trainer="bad_trainer:Bad"))
    assert "diverged" in failed.reason
    assert not Path(job.checkpoint_path).exists()


_PATIENT = """
import numpy as np
import lichen
class Patient:
    checkpoint = None
    def evaluate(self, weights, samples): return {}
    def train(self, weights, samples, plan, should_stop):
        state, steps = {name: tensor.copy() for name, tensor in weights.items()}, 0
        if self.checkpoint is not None and (saved := self.checkpoint.resume()):
            steps, tensors = saved
            state = {name: tensor.copy() for name, tensor in tensors.items()}
        while steps < 10 and not should_stop():
            for tensor in state.values():
                tensor += np.float32(0.5)
            steps += 1
            if self.checkpoint is not None:
                self.checkpoint.offer(steps, lambda: state)
        return lichen.TrainingResult(state, steps=steps)
"""


def test_a_trainer_of_the_users_takes_part_by_an_attribute(job, tmp_path, monkeypatch):
    """It resumes where it offered last, and is counted for all its steps."""
    (tmp_path / "patient.py").write_text(_PATIENT)
    monkeypatch.syspath_prepend(tmp_path)
    job = replace(job, trainer="patient:Patient")
    whole = run(replace(job, checkpoint_path=""))
    assert run(job, stop_after(5)) == JobFailed(reason="cancelled", retryable=True)
    assert 0 < read_checkpoint(Path(job.checkpoint_path)).steps < 10
    went_on = run(job)
    assert (went_on.payload, went_on.steps_done) == (whole.payload, 10)


@pytest.fixture
def clock():
    return ManualClock(50.0)


@pytest.fixture
def checkpoint(tmp_path, clock):
    return Checkpoint(tmp_path / "c", binding=b"b" * 32, samples=9, newest=9, clock=clock)


def test_a_short_training_writes_nothing(checkpoint, clock, tmp_path):
    """Flash memory wears out; two minutes of training are cheaper than a write for each."""
    captured = []
    for step in range(1, 120):
        clock.advance(1.0)
        checkpoint.offer(step, lambda: captured.append(1) or {})
    assert captured == []
    assert not (tmp_path / "c").exists()


def test_a_long_training_writes_every_two_minutes(checkpoint, clock, tmp_path):
    """Each write takes the place of the one before."""
    writes = []
    for step in range(1, 601):
        clock.advance(1.0)
        checkpoint.offer(step, lambda step=step: writes.append(step) or {"w": np.full(2, step)})
    assert writes == [120, 240, 360, 480, 600]
    assert read_checkpoint(tmp_path / "c").steps == 600


@pytest.mark.parametrize(("worked_s", "steps"), [(LITTLE_WORK_S - 1, None), (LITTLE_WORK_S, 3)])
def test_a_cancelled_training_leaves_what_is_worth_a_write(checkpoint, clock, tmp_path, worked_s, steps):
    """What was last offered, once."""
    for step in (1, 2, 3):
        checkpoint.offer(step, lambda step=step: {"w": np.full(2, step, np.float32)})
    clock.advance(worked_s)
    checkpoint.leave()
    checkpoint.leave()
    saved = read_checkpoint(tmp_path / "c")
    assert (saved.steps if saved else None) == steps


def test_a_disk_that_refuses_ends_the_checkpoints_and_not_the_training(tmp_path, clock):
    """The next write would fail too, and cost time."""
    disk = SimulatedDisk(fail={"sync:1"})
    checkpoint = Checkpoint(
        tmp_path / "c", binding=b"b" * 32, samples=1, newest=1, every_s=0.0, clock=clock, disk=disk
    )
    for step in (1, 2, 3):
        checkpoint.offer(step, lambda: {"w": np.zeros(2, np.float32)})
    assert disk.calls["write"] == 1
    assert read_checkpoint(tmp_path / "c") is None


@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_while_a_checkpoint_is_written_leaves_the_old_or_the_new(tmp_path, clock, seed):
    """Whatever moment it comes at."""
    kept = set()
    for cut in range(1, 12):
        folder = tmp_path / str(cut)
        folder.mkdir()
        disk = SimulatedDisk(seed=seed, cut=cut)
        checkpoint = Checkpoint(
            folder / "c", binding=b"b" * 32, samples=1, newest=1, every_s=0.0, clock=clock, disk=disk
        )
        done = 0
        try:
            for step in (1, 2):
                checkpoint.offer(step, lambda step=step: {"w": np.full(300, step, np.float32)})
                done = step
        except PowerCut:
            disk.crash()
        saved = read_checkpoint(folder / "c")
        steps = saved.steps if saved else 0
        assert done <= steps <= done + 1
        assert saved is None or (saved.tensors["w"] == steps).all()
        kept.add(steps)
    assert kept == {0, 1, 2}


_SLOW = """
import time
from pathlib import Path
import numpy as np
import lichen
class Slow:
    checkpoint = None
    def evaluate(self, weights, samples): return {}
    def train(self, weights, samples, plan, should_stop):
        here = Path(__file__).parent
        steps = 0
        if self.checkpoint is not None and (saved := self.checkpoint.resume()):
            steps, tensors = saved
        with (here / "lives").open("a") as lives:
            lives.write(f"{steps}\\n")
        while steps < 1000 and not should_stop():
            steps += 1
            if self.checkpoint is not None:
                self.checkpoint.offer(steps, lambda: {"steps": np.array(steps)})
            (here / "steps").write_text(str(steps))
            if steps == 300 and not (here / "go").exists():
                time.sleep(0.02)  # more than a little work
                while not should_stop():
                    time.sleep(0.001)
        return lichen.TrainingResult({name: tensor + 1 for name, tensor in weights.items()}, steps=steps)
"""


@pytest.fixture
def slow_job(job, tmp_path):
    """A training that stands still at step 300 until it is told to stop, or there is a file ``go``."""
    (tmp_path / "slow.py").write_text(_SLOW)
    return replace(
        job, trainer="slow:Slow", trainer_path=str(tmp_path), plan=TrainingPlan(epochs=200, batch_size=32)
    )


@pytest.fixture
def worker():
    """A worker process, and what it delivers."""
    arrived: queue.Queue = queue.Queue()
    made = ProcessWorker(lambda job, result: arrived.put(result), linger_s=30, grace_s=WAIT_S)
    made.arrived = arrived
    yield made
    made.stop()


def reached(folder, step):
    until = time.monotonic() + WAIT_S
    while (folder / "steps").read_text() != str(step) if (folder / "steps").exists() else True:
        assert time.monotonic() < until
        os.sched_yield()


def result_of(worker):
    while isinstance(result := worker.arrived.get(timeout=WAIT_S), Progress):
        pass
    return result


def test_a_worker_killed_in_training_costs_no_more_than_one_interval(slow_job, worker, tmp_path):
    """kill -9 of a real process in mid-training: the next life goes on from the last checkpoint."""
    worker.submit(slow_job)
    reached(tmp_path, 300)
    os.kill(worker.process_id, signal.SIGKILL)
    assert "SIGKILL" in result_of(worker).reason
    (tmp_path / "go").touch()
    worker.submit(replace(slow_job, update_id=b"u" * 16))
    trained = result_of(worker)
    assert isinstance(trained, Trained), trained
    assert trained.steps_done == 1000
    assert (tmp_path / "lives").read_text().split() == ["0", "300"]


@pytest.mark.parametrize("how", ["cancel", "stop", "sigterm"])
def test_a_cancelled_training_checkpoints_as_it_stops(slow_job, worker, tmp_path, how):
    """By a gate or a pause, by the agent's own end, by a service manager that tells every process."""
    job = replace(slow_job, checkpoint_every_s=5e-3)
    worker.submit(job)
    reached(tmp_path, 300)
    match how:
        case "cancel":
            worker.cancel()
        case "stop":
            worker.stop()
        case "sigterm":
            os.kill(worker.process_id, signal.SIGTERM)
    assert result_of(worker) == JobFailed(reason="cancelled", retryable=True)
    assert read_checkpoint(Path(job.checkpoint_path)).steps == 300


def test_a_training_that_does_not_stop_when_told_is_killed(train_job, tmp_path):
    """A native call of minutes must not hold a pause up."""
    (tmp_path / "deaf.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "class Deaf:\n"
        "    def evaluate(self, weights, samples): return {}\n"
        "    def train(self, weights, samples, plan, should_stop):\n"
        "        Path(__file__).with_name('steps').write_text('1')\n"
        "        time.sleep(600)\n"
    )
    arrived: queue.Queue = queue.Queue()
    worker = ProcessWorker(lambda job, result: arrived.put(result), linger_s=30, grace_s=0.2)
    worker.submit(train_job(trainer="deaf:Deaf", trainer_path=str(tmp_path)))
    reached(tmp_path, 1)
    worker.cancel()
    worker.cancel()
    assert arrived.get(timeout=WAIT_S) == JobFailed(reason="cancelled", retryable=True)
    worker.stop()
