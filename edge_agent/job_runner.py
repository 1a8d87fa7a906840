"""Does the jobs: the same code in a worker process and inline."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edge_agent.jobs import (
    Job,
    JobFailed,
    Prepared,
    PrepareJob,
    Progress,
    Result,
    Trained,
    TrainJob,
    Verified,
    VerifyJob,
)
from edge_agent.trainer_fault import TrainerFault, training_code
from fl_protocol.clock import Clock
from fl_protocol.errors import (
    ConfigError,
    LichenError,
    MessageError,
    SignatureError,
    StorageError,
)

if TYPE_CHECKING:
    from edge_agent.participation import SampleParts
    from edge_agent.trainer import Trainer
    from models.runtime import Session, TrainingArtifact

__all__ = ["JobRunner", "ReportProgress"]

_PROGRESS_EVERY_S = 1.0
_STEP_FILE = "step.onnx"
_log = logging.getLogger(__name__)

ReportProgress: TypeAlias = Callable[[Progress], None]


class JobRunner:
    """Runs one job at a time; keeps the artifact and session of the last one for the next.

    Heavy libraries are imported by the job that needs them, so that one which only checks a signature
    loads no array library.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._artifact: TrainingArtifact | None = None
        self._sessions: dict[str, Session] = {}

    def run(self, job: Job, report: ReportProgress, should_stop: Callable[[], bool]) -> Result:
        """The job's result; whatever goes wrong in it is a ``JobFailed``."""
        started = time.process_time()
        result = self._result(job, report, should_stop)
        if isinstance(result, Trained):
            return replace(result, cpu_s=time.process_time() - started)
        failed = isinstance(result, JobFailed) and not result.retryable
        if failed and isinstance(job, TrainJob) and job.checkpoint_path:
            with suppress(OSError):  # whatever went wrong must not be gone on with
                Path(job.checkpoint_path).unlink(missing_ok=True)
        return result

    def _result(self, job: Job, report: ReportProgress, should_stop: Callable[[], bool]) -> Result:
        try:
            match job:
                case VerifyJob():
                    return _verified(job)
                case PrepareJob():
                    return self._prepare(job)
                case TrainJob():
                    return self._train(job, report, should_stop)
        except TrainerFault as error:
            _log.error("the trainer failed", exc_info=error.__cause__)
            return JobFailed(reason=_sentence(error), retryable=error.retryable, told=error.told)
        except StorageError as error:  # a disk that was full or busy may have room and time later
            return JobFailed(reason=_sentence(error), retryable=True)
        except LichenError as error:
            return JobFailed(reason=_sentence(error), retryable=error.retryable)
        except MemoryError:
            return JobFailed(reason="not enough memory for this job", retryable=True)
        except Exception as error:  # a runtime may raise anything
            _log.exception("the job failed")
            kind = type(error).__name__
            return JobFailed(reason=f"{kind}: {error}", retryable=False, told=f"the job failed: {kind}")

    def _prepare(self, job: PrepareJob) -> Prepared:
        from models.runtime import open_session

        artifact = self._opened(job.artifact_dir)
        if _STEP_FILE not in artifact.manifest.files:
            return Prepared(runtime="")
        session, skipped = open_session(artifact, job.runtimes)
        self._sessions[session.name] = session
        return Prepared(runtime=session.name, skipped=tuple(skipped))

    def _train(
        self, job: TrainJob, report: ReportProgress, should_stop: Callable[[], bool]
    ) -> Trained | JobFailed:
        from edge_agent.continuation import find_checkpoint, find_personal
        from edge_agent.participation import participate
        from edge_agent.trainer import brings_samples, planned_steps

        artifact = self._opened(job.artifact_dir)
        trainer, runtime = self._trainer(job, artifact)
        personal = find_personal(job, artifact)
        published = _content(Path(job.weights_path))
        if not Path(job.samples_path).exists() and not brings_samples(trainer):
            return JobFailed(reason=f"there are no samples at {job.samples_path}", retryable=True)
        with _samples_at(Path(job.samples_path)) as stored:
            checkpoint, samples = find_checkpoint(job, artifact, runtime, stored, clock=self._clock)
            if hasattr(trainer, "checkpoint"):
                trainer.checkpoint = checkpoint
            planned = planned_steps(job.plan, len(samples.training))
            ends_at = self._clock.monotonic() + job.plan.deadline_s
            reported_at = self._clock.monotonic()

            def stop(steps: int) -> bool:
                nonlocal reported_at
                now = self._clock.monotonic()
                if now - reported_at >= _PROGRESS_EVERY_S:
                    reported_at = now
                    report(Progress(steps_done=min(steps, planned), steps_planned=planned))
                return now >= ends_at or should_stop()

            return participate(
                job,
                layout=artifact.layout,
                published=published,
                trainer=trainer,
                samples=samples,
                should_stop=stop,
                runtime=runtime,
                personal=personal,
                order=[parameter.name for parameter in artifact.manifest.parameters],
                checkpoint=checkpoint,
                cancelled=should_stop,
            )

    def _trainer(self, job: TrainJob, artifact: "TrainingArtifact") -> "tuple[Trainer, str]":
        from edge_agent.graph_trainer import GraphTrainer
        from edge_agent.trainer import load_trainer

        if job.trainer:
            with training_code(own=False):
                trainer = load_trainer(job.trainer, job.trainer_path)
            return trainer, job.trainer.partition(":")[2]
        if _STEP_FILE not in artifact.manifest.files:
            raise ConfigError(
                f"the artifact {artifact.manifest.name!r} holds weights alone",
                hint="name your own training code with trainer = module:Class in agent.toml",
            )
        session = self._session(artifact, job.runtimes)
        return GraphTrainer(artifact, session), session.name

    def _session(self, artifact: "TrainingArtifact", runtimes: tuple[str, ...]) -> "Session":
        """A runtime that stands alone was found by a ``PrepareJob``: its golden steps ran already."""
        from models.runtime import RUNTIMES, open_session

        for name in runtimes[:1]:
            if name in self._sessions:
                return self._sessions[name]
        if len(runtimes) == 1 and runtimes[0] in RUNTIMES:
            session = RUNTIMES[runtimes[0]].open(artifact)
        else:
            session, _ = open_session(artifact, runtimes)
        self._sessions[session.name] = session
        return session

    def _opened(self, folder: str) -> "TrainingArtifact":
        from models.runtime import TrainingArtifact

        if self._artifact is None or str(self._artifact.path) != str(Path(folder)):
            self._sessions.clear()
            self._artifact = None
            self._artifact = TrainingArtifact.open(folder, complete=False)
        return self._artifact


def _verified(job: VerifyJob) -> Verified:
    from fl_io.ed25519 import read_public_key, verifier
    from fl_protocol.signed import open_envelope

    verify = verifier(read_public_key(key) for key in job.trusted_keys)
    try:
        open_envelope(job.context, job.envelope, verify, limit=len(job.envelope))
    except (MessageError, SignatureError) as error:
        return Verified(ok=False, reason=_sentence(error))
    return Verified(ok=True)


@contextmanager
def _samples_at(path: Path) -> "Iterator[SampleParts]":
    """The parts of the store at ``path``; empty ones where there is none, which is not made for that."""
    import numpy as np

    from edge_agent.participation import SampleParts
    from edge_agent.samples import SampleStore
    from edge_agent.trainer import ArraySamples

    if path.exists():
        with SampleStore(path) as store:
            yield SampleParts(training=store.training(), held_out=store.held_out())
    else:
        nothing = ArraySamples(np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
        yield SampleParts(training=nothing, held_out=nothing)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _sentence(error: LichenError) -> str:
    """An error in one line."""
    said = " ".join(str(error.args[0]).split())
    return f"{said} ({error.hint})" if error.hint else said
