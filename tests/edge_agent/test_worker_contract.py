"""The contract of workers: a process and the caller's own do the same jobs and give the same results."""

import os
import queue
import sys
import threading

import pytest

from edge_agent.job_runner import JobRunner
from edge_agent.jobs import JobFailed, Prepared, PrepareJob, Progress, Trained, Verified, VerifyJob
from edge_agent.worker_client import InlineWorker, ProcessWorker
from fl_io.clock import SystemClock
from fl_io.ed25519 import new_private_key, public_key_text, signer
from fl_protocol.plan import TrainingPlan
from fl_protocol.signed import COMMAND_CONTEXT, TASK_CONTEXT, seal

WAIT_S = 60
_USER_TRAINERS = """
import os, sys, time
class Zero:
    def train(self, weights, samples, plan, should_stop):
        from edge_agent.trainer import TrainingResult
        print("training, said on standard output")
        os.system("echo said by a child on standard output")
        return TrainingResult({k: v.copy() for k, v in weights.items()}, steps=1)
    def evaluate(self, weights, samples): return {"loss": 0.0}
class Endless(Zero):
    def train(self, weights, samples, plan, should_stop):
        from pathlib import Path
        Path(__file__).with_name("begun").touch()
        while not should_stop():
            time.sleep(0.001)
        return super().train(weights, samples, plan, should_stop)
class Fails(Zero):
    def train(self, weights, samples, plan, should_stop): raise RuntimeError("no camera")
class Quotes(Zero):
    def train(self, weights, samples, plan, should_stop):
        raise ValueError(f"cannot place {samples.all()[0][0].tolist()} of patient 4711")
class QuotesInEvaluate(Zero):
    def evaluate(self, weights, samples):
        from fl_protocol.errors import LayoutError
        try: {}["patient 4711"]
        except KeyError as error: raise LayoutError("nobody knows patient 4711") from error
class QuotesAsItIsMade(Zero):
    def __init__(self): raise OSError("no folder of patient 4711")
class QuotesInItsFigures(Zero):
    def train(self, weights, samples, plan, should_stop):
        from edge_agent.trainer import TrainingResult
        return TrainingResult(weights, steps="patient 4711")
"""


class Results:
    """Takes results as a supervisor would, from whatever thread they come."""

    def __init__(self):
        self.arrived = queue.Queue()
        self.progress = []

    def __call__(self, job, result):
        if isinstance(result, Progress):
            self.progress.append(result)
        else:
            self.arrived.put((job, result))

    def next(self):
        return self.arrived.get(timeout=WAIT_S)


@pytest.fixture
def results():
    return Results()


@pytest.fixture(params=["inline", "process"])
def worker(request, results):
    """Each of the two; stopped at the end."""
    if request.param == "inline":
        made = InlineWorker(results, JobRunner(clock=SystemClock()))
    else:
        made = ProcessWorker(results, linger_s=30)
    yield made
    made.stop()


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A folder with trainers of a user's."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "user_trainers.py").write_text(_USER_TRAINERS)
    yield tmp_path
    sys.modules.pop("user_trainers", None)


def done(worker, results, job):
    worker.submit(job)
    said_of, result = results.next()
    assert said_of == job
    return result


def test_a_signature_is_checked(worker, results):
    """The key, the bytes and the kind of message all count; whatever bytes come, the answer is a no."""
    key, other = new_private_key(), new_private_key()
    good = seal(TASK_CONTEXT, b"body", signer(key))
    trusted = (public_key_text(other), public_key_text(key))

    def verify(envelope, context=TASK_CONTEXT, keys=trusted):
        return done(worker, results, VerifyJob(envelope=envelope, context=context, trusted_keys=keys))

    assert verify(good) == Verified(ok=True)
    for refused in (
        verify(good[:-1] + b"Y"),
        verify(good, COMMAND_CONTEXT),
        verify(good, TASK_CONTEXT, trusted[:1]),
        verify(good, TASK_CONTEXT, ()),
        verify(b""),
        verify(b"\xff" * 100),
        verify(seal(TASK_CONTEXT, b"body", lambda content: (b"", b""))),
    ):
        assert isinstance(refused, Verified)
        assert not refused.ok
        assert refused.reason
    assert isinstance(verify(good, TASK_CONTEXT, ("rsa:00",)), JobFailed)


def test_an_artifact_is_prepared_on_the_first_runtime_that_works(worker, results, artifact):
    """A runtime that is not there is passed over, with its reason."""
    job = PrepareJob(artifact_dir=str(artifact.path), runtimes=("nonsense", "numpy"))
    prepared = done(worker, results, job)
    assert isinstance(prepared, Prepared)
    assert prepared.runtime == "numpy"
    assert len(prepared.skipped) == 1
    assert "nonsense" in prepared.skipped[0]


def test_no_runtime_or_no_artifact_is_a_failure_with_its_reason(worker, results, artifact, tmp_path):
    """One line that an operator can act on."""
    for job, says in (
        (PrepareJob(artifact_dir=str(artifact.path), runtimes=("nonsense",)), "nonsense"),
        (PrepareJob(artifact_dir=str(tmp_path), runtimes=("numpy",)), "manifest.json"),
    ):
        failed = done(worker, results, job)
        assert isinstance(failed, JobFailed)
        assert says in failed.reason
        assert "\n" not in failed.reason


def test_verify_prepare_and_train_one_after_the_other(worker, results, artifact, train_job):
    """The jobs of one participation, each submitted as the one before is delivered."""
    key = new_private_key()
    envelope = seal(TASK_CONTEXT, b"body", signer(key))
    verify = VerifyJob(envelope=envelope, context=TASK_CONTEXT, trusted_keys=(public_key_text(key),))
    assert done(worker, results, verify) == Verified(ok=True)
    prepared = done(worker, results, PrepareJob(artifact_dir=str(artifact.path), runtimes=("onnx", "numpy")))
    assert isinstance(prepared, Prepared)
    # Long enough that the loss falls whichever samples chance holds out.
    job = train_job(runtimes=(prepared.runtime,), plan=TrainingPlan(epochs=10, batch_size=16, lr=0.2))
    process = worker.process_id
    trained = done(worker, results, job)
    assert isinstance(trained, Trained), trained
    assert worker.process_id == process
    assert trained.runtime == prepared.runtime
    assert (trained.update_id, len(trained.payload)) == (job.update_id, 356)  # 19 scales, 2,432 signs
    assert trained.steps_done == trained.steps_planned > 10
    assert trained.metrics["after.loss"] < trained.metrics["before.loss"]
    assert trained.cpu_s >= trained.training_cpu_s > 0
    assert not worker.busy


def test_a_trainer_of_the_users(worker, results, train_job, user_folder):
    """Loaded by name from its folder; what it prints, and its child processes print, harms nobody."""
    trained = done(
        worker, results, train_job(trainer="user_trainers:Zero", trainer_path=str(user_folder), runtimes=())
    )
    assert isinstance(trained, Trained), trained
    assert trained.runtime == "Zero"
    failed = done(worker, results, train_job(trainer="user_trainers:Fails", trainer_path=str(user_folder)))
    assert (failed.reason, failed.retryable) == ("RuntimeError: no camera", False)


def test_what_a_trainer_says_as_it_fails_is_not_for_others(worker, results, train_job, user_folder):
    """It may quote samples: the device keeps the text, the coordinator gets the class of the error."""
    for trainer, told in (
        ("Quotes", "the trainer failed: ValueError"),
        ("QuotesInEvaluate", "the trainer failed: LayoutError of KeyError"),
        ("QuotesAsItIsMade", "the trainer failed: ConfigError of OSError"),
        ("QuotesInItsFigures", "the job failed: ValueError"),
    ):
        job = train_job(trainer=f"user_trainers:{trainer}", trainer_path=str(user_folder))
        failed = done(worker, results, job)
        assert isinstance(failed, JobFailed)
        assert "patient 4711" in failed.reason
        assert failed.for_others.startswith(told)
        assert "4711" not in failed.for_others


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights_path": "/nowhere"}, "/nowhere"),
        ({"samples_path": "/nowhere"}, "/nowhere"),
        ({"fingerprint": b"x" * 8}, "layout"),
        ({"codec": "gzip"}, "gzip"),
        ({"trainer": "no_such:Trainer"}, "no_such"),
        ({"runtimes": ()}, "no runtime"),
    ],
)
def test_a_training_that_cannot_be_says_why(worker, results, train_job, changes, says):
    """And the worker takes the next job."""
    failed = done(worker, results, train_job(**changes))
    assert isinstance(failed, JobFailed)
    assert says in failed.reason
    assert isinstance(done(worker, results, train_job()), Trained)


def test_a_disk_that_refuses_may_be_asked_again(worker, results, train_job, tmp_path):
    """A store that is locked or a disk that is full today says nothing about tomorrow."""
    (tmp_path / "samples.db").mkdir()
    assert done(worker, results, train_job(samples_path=str(tmp_path / "samples.db"))).retryable


def test_the_deadline_of_the_plan_cuts_a_training_short(worker, results, train_job, user_folder):
    """A training that has no end of its own ends in time, and reports progress on the way."""
    job = train_job(
        trainer="user_trainers:Endless", trainer_path=str(user_folder), plan=TrainingPlan(deadline_s=1.5)
    )
    trained = done(worker, results, job)
    assert isinstance(trained, Trained), trained
    assert results.progress
    assert results.progress[0].steps_planned == trained.steps_planned


def test_a_busy_worker_takes_no_second_job_and_can_be_cancelled(worker, results, train_job, user_folder):
    """A cancelled job has one result, and the worker is free again."""
    job = train_job(trainer="user_trainers:Endless", trainer_path=str(user_folder))
    submitting = threading.Thread(target=worker.submit, args=(job,))
    submitting.start()
    while not (user_folder / "begun").exists():
        assert results.arrived.empty()
        os.sched_yield()
    assert worker.busy
    with pytest.raises(RuntimeError, match="busy"):
        worker.submit(job)
    worker.cancel()
    assert results.next() == (job, JobFailed(reason="cancelled", retryable=True))
    submitting.join(WAIT_S)
    worker.cancel()
    assert isinstance(done(worker, results, train_job()), Trained)
    assert results.arrived.empty()


def test_a_stopped_worker_takes_no_job(worker, results, train_job, user_folder):
    """Stopping cancels what is under way."""
    job = train_job(trainer="user_trainers:Endless", trainer_path=str(user_folder))
    submitting = threading.Thread(target=worker.submit, args=(job,))
    submitting.start()
    while not (user_folder / "begun").exists():
        os.sched_yield()
    worker.stop()
    submitting.join(WAIT_S)
    assert results.next() == (job, JobFailed(reason="cancelled", retryable=True))
    with pytest.raises(RuntimeError, match="stopped"):
        worker.submit(job)
    assert worker.process_id is None
    worker.stop()


def test_the_next_job_may_be_submitted_from_the_delivery(worker, results, train_job, artifact):
    """A supervisor that goes on at once needs no queue of its own, with either worker."""
    left = [train_job(), train_job()]

    def deliver(job, result):
        if left:
            worker.submit(left.pop())
        else:
            results(job, result)

    worker._deliver = deliver
    worker.submit(PrepareJob(artifact_dir=str(artifact.path), runtimes=("numpy",)))
    assert isinstance(results.next()[1], Trained)
