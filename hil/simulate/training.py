"""What the workers of virtual devices do: real trainings, each done when its virtual time is over."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.continuation import find_personal
from edge_agent.graph_trainer import GraphTrainer
from edge_agent.job_runner import JobRunner
from edge_agent.jobs import Deliver, Job, JobFailed, Prepared, PrepareJob, Result, TrainJob, VerifyJob
from edge_agent.participation import SampleParts, encoded, participate
from edge_agent.trainer import Trainer
from edge_agent.trainer_fault import TrainerFault
from fl_protocol.clock import Clock
from fl_protocol.codec import decode_model
from fl_protocol.errors import LichenError
from fl_protocol.layout import TensorLayout
from hil.simulate.lessons import Learned, Lesson, Lessons, Pending
from hil.simulate.share import Share, ShareSamples
from hil.simulate.stacked_training import StackedTraining
from hil.simulate.trained_ahead import TrainedAhead
from models.runtime import Session, TrainingArtifact, open_session, split_flat

__all__ = ["DeviceSamples", "Trainings", "VirtualWorker", "split_held_out"]

_REMEMBERED_CHECKS = 256
_REMEMBERED_VERSIONS = 4


@dataclass(frozen=True, slots=True)
class DeviceSamples:
    """One device's rows: all but the last ``held_out`` are trained on."""

    share: Share
    held_out: int = 0

    @property
    def training(self) -> int:
        """Rows that are trained on."""
        return len(self.share) - self.held_out

    def parts(self) -> SampleParts:
        """As the agent takes them."""
        whole = len(self.share)
        cut = whole - self.held_out
        return SampleParts(
            training=ShareSamples(self.share, 0, cut), held_out=ShareSamples(self.share, cut, whole)
        )


class Trainings:
    """The jobs of all devices of a simulation, done by the code that devices run.

    A signature and an artifact's golden steps are checked once for all devices: each gives the same answer.
    ``stacked`` trains devices of the same version together where they are trained in NumPy. Where all of
    them train with the artifact's ``graph_alone``, and a model is small, updates are encoded together.
    """

    def __init__(
        self,
        artifact: TrainingArtifact,
        *,
        clock: Clock,
        runtimes: tuple[str, ...],
        stacked: bool = False,
        graph_alone: bool = False,
    ) -> None:
        self.done = 0
        self._artifact = artifact
        self._runner = JobRunner(clock=clock)
        self._session: Session | None = None
        self.prepared = Prepared(runtime="")
        if "step.onnx" in artifact.manifest.files:
            self._session, skipped = open_session(artifact, runtimes)
            self.prepared = Prepared(runtime=self._session.name, skipped=tuple(map(str, skipped)))
        self._graph = GraphTrainer(artifact, self._session) if self._session is not None else None
        self._lessons: Lessons | None = None
        if self._graph is not None and stacked:
            self._lessons = StackedTraining(artifact, self._graph)
        elif self._graph is not None and graph_alone and TrainedAhead.suits(artifact):
            self._lessons = TrainedAhead(artifact, self._graph)
        self._checks: dict[tuple[bytes, bytes], Result] = {}
        self._weights: dict[bytes, NDArray[np.float32]] = {}
        self._order = [parameter.name for parameter in artifact.manifest.parameters]

    def begin(self, device: int, job: TrainJob, published: bytes, samples: DeviceSamples, steps: int) -> None:
        """A device begins to train, and takes at most so many steps."""
        if self._lessons is not None:
            self._lessons.begin(
                device, Pending(job=job, published=published, samples=samples, most_steps=steps)
            )

    def forget(self, device: int) -> None:
        """A device does not go on with what it began."""
        if self._lessons is not None:
            self._lessons.forget(device)

    def look(self, job: VerifyJob | PrepareJob) -> Result:
        """The result of a job that trains nothing."""
        if isinstance(job, PrepareJob):
            if Path(job.artifact_dir).name != self._artifact.digest.hex():
                return JobFailed(reason="the task names another artifact", retryable=False)
            return self.prepared
        key = job.context, job.envelope
        known = self._checks.get(key)
        if known is None:
            known = self._checks[key] = self._runner.run(job, _ignore, _never)
            if len(self._checks) > _REMEMBERED_CHECKS:
                del self._checks[next(iter(self._checks))]
        return known

    def train(
        self,
        device: int,
        job: TrainJob,
        published: bytes,
        samples: DeviceSamples,
        make_trainer: Callable[[Trainer | None], Trainer],
        *,
        most_steps: int,
    ) -> Result:
        """Train once, as ``edge_agent.participation`` does; told to stop after ``most_steps`` steps.
        ``make_trainer`` is given what trains with the artifact's graph."""
        self.done += 1
        parts = samples.parts()
        lesson = self._lesson(device, published)
        graph: Trainer | None = self._graph
        if lesson is not None and graph is not None:
            graph = Learned(graph, lesson, of=parts.training)
        trainer = make_trainer(graph)
        try:
            return participate(
                job,
                layout=self._artifact.layout,
                published=published,
                trainer=trainer,
                samples=parts,
                should_stop=lambda steps: steps >= most_steps,
                runtime=self.prepared.runtime,
                personal=find_personal(job, self._artifact),
                order=self._order,
                decode=self._decoded,
                encode=lesson.encode if lesson is not None else encoded,
            )
        except TrainerFault as fault:
            cause = fault.__cause__
            if not isinstance(cause, LichenError):  # a trainer with a defect: its owner wants to see where
                raise cause or fault from None
            return JobFailed(reason=str(fault.args[0]), retryable=fault.retryable, told=fault.told)
        except LichenError as error:
            return JobFailed(reason=str(error.args[0]), retryable=error.retryable)

    def _lesson(self, device: int, published: bytes) -> Lesson | None:
        """What this device learned with others; None where it must be trained alone."""
        if self._lessons is None:
            return None
        layout = self._artifact.layout
        return self._lessons.result(device, lambda: split_flat(self._decoded(published, layout), layout))

    def _decoded(self, published: bytes, layout: TensorLayout) -> NDArray[np.float32]:
        """The weights of a version, decoded once for all devices; never written to."""
        known = self._weights.get(published)
        if known is None:
            known = self._weights[published] = decode_model(published, layout)
            if len(self._weights) > _REMEMBERED_VERSIONS:
                del self._weights[next(iter(self._weights))]
        return known


class Apprentice(Protocol):
    """Whose worker it is: what trains, and how long that takes."""

    def begin(self, job: TrainJob, end: Callable[[TrainJob], None]) -> None:
        """A training begins; when it is over, have its ``end`` take place."""
        ...

    def train(self, job: TrainJob) -> Result:
        """Do what was to be learned in the meantime."""
        ...

    def ended(self, job: TrainJob) -> None:
        """It trains no more."""
        ...


class VirtualWorker:
    """The worker of a virtual device: a training ends, and is really done, when its virtual time is over."""

    __slots__ = ("_deliver", "_job", "_of", "_stopped", "_trainings")

    def __init__(self, deliver: Deliver, *, trainings: Trainings, of: Apprentice) -> None:
        self._deliver = deliver
        self._trainings = trainings
        self._of = of
        self._job: TrainJob | None = None
        self._stopped = False

    @property
    def busy(self) -> bool:
        """See ``Worker.busy``."""
        return self._job is not None

    @property
    def process_id(self) -> int | None:
        """There is none."""
        return None

    def submit(self, job: Job) -> None:
        """See ``Worker.submit``: a training takes its virtual time, everything else none."""
        if self._stopped or self.busy:
            raise RuntimeError("the worker is stopped" if self._stopped else "the worker is busy")
        if isinstance(job, TrainJob):
            self._job = job
            self._of.begin(job, self._finish)
        else:
            self._deliver(job, self._trainings.look(job))

    def cancel(self) -> None:
        """See ``Worker.cancel``."""
        job, self._job = self._job, None
        if job is not None and not self._stopped:
            self._of.ended(job)
            self._deliver(job, JobFailed(reason="cancelled", retryable=True))

    def stop(self) -> None:
        """See ``Worker.stop``."""
        self._stopped = True
        self._job = None

    def _finish(self, job: TrainJob) -> None:
        if self._job is job:
            self._job = None
            result = self._of.train(job)
            self._of.ended(job)
            self._deliver(job, result)


def split_held_out(rows: Share, portion: float, *, seed: int) -> DeviceSamples:
    """Keep ``portion`` of a device's rows, drawn by ``seed``, from training."""
    count = len(rows)
    held_out = min(math.ceil(portion * count), count - 1) if portion and count > 1 else 0
    if held_out:
        rows = rows.in_order(np.random.default_rng(seed).permutation(count))
    return DeviceSamples(rows, held_out)


def _ignore(_: object) -> None:
    pass


def _never() -> bool:
    return False
