"""Jobs for the worker and what comes back: plain values, so that the supervisor needs no array library.

A job travels to a worker process as a frame and its results come back as frames (``edge_agent.frames``);
an inline worker is handed the same objects.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from fl_protocol.errors import MessageError
from fl_protocol.fields import Fields
from fl_protocol.plan import TrainingPlan
from fl_protocol.version import VersionId

__all__ = [
    "Deliver",
    "Job",
    "JobFailed",
    "PrepareJob",
    "Prepared",
    "Progress",
    "Result",
    "TrainJob",
    "Trained",
    "Verified",
    "VerifyJob",
    "Worker",
    "from_body",
    "to_body",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyJob:
    """Check a signed envelope. ``trusted_keys`` are public keys as configurations write them."""

    envelope: bytes
    context: bytes
    trusted_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareJob:
    """Open an artifact and find the first of ``runtimes`` that reproduces its golden steps.

    The content of ``artifact_dir`` never changes: a worker keeps it open from job to job.
    """

    artifact_dir: str
    runtimes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Train once from ``base`` and encode the update.

    ``weights_path`` is the file of the published weights as downloaded (see ``encode_model``).
    ``device_seed`` stays on the device. ``fingerprint`` must be that of the artifact's layout.
    ``max_examples`` caps what the update counts. A runtime that stands alone in ``runtimes`` has been found
    by a ``PrepareJob`` and is opened straight; of several the golden steps choose one. ``trainer`` is empty
    for the artifact's own step graph, else ``module:Class``, looked for on Python's path and then in the
    folder ``trainer_path``. ``device_state`` is what the last training on this device left of its personal
    tensors, empty before the first. A training that takes longer than ``checkpoint_every_s`` seconds leaves
    checkpoints at ``checkpoint_path`` (none where that is empty), and the same training goes on from there.
    ``codec_state`` is what the encoding of the last update left, empty where it left nothing.
    """

    update_id: bytes
    device_seed: bytes
    artifact_dir: str
    weights_path: str
    samples_path: str
    plan: TrainingPlan
    base: VersionId
    codec: str
    fingerprint: bytes
    max_examples: int
    runtimes: tuple[str, ...]
    trainer: str = ""
    trainer_path: str = ""
    device_state: bytes = b""
    checkpoint_path: str = ""
    checkpoint_every_s: float = 120.0
    codec_state: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Whether the signature holds; ``reason`` where it does not."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The runtime that works here, and a sentence on each one before it that does not.

    ``runtime`` is empty for an artifact that holds weights alone, which needs a trainer of the user's.
    """

    runtime: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """An encoded update and what its header says of it.

    ``num_examples`` counts distinct training examples, capped. ``metrics`` holds sums and counts on the
    held-out samples: ``before.*`` for the base, ``after.*`` for the trained weights, and the trainer's own
    sums over its steps under ``after.*`` too. ``cpu_s`` is the CPU time of the whole job, ``training_cpu_s``
    that of the trainer in it. ``device_state`` holds the personal tensors after the training, empty where the
    model has none; ``codec_state`` what the payload leaves out of the delta, empty where that is not kept.
    """

    update_id: bytes
    payload: bytes
    num_examples: int
    steps_done: int
    steps_planned: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    runtime: str = ""
    cpu_s: float = 0.0
    training_cpu_s: float = 0.0
    device_state: bytes = field(default=b"", repr=False)
    codec_state: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed:
    """The job gave nothing. ``retryable``: the same job may succeed later (a crash, a kill, no memory).

    ``reason`` is for the device's own log and status; ``told`` is what the coordinator is told instead where
    a reason may quote samples, empty where it may have the reason itself.
    """

    reason: str
    retryable: bool
    told: str = ""

    @property
    def for_others(self) -> str:
        """The reason as it may leave the device."""
        return self.told or self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training is; comes at most once a second, before the result."""

    steps_done: int
    steps_planned: int


Job: TypeAlias = VerifyJob | PrepareJob | TrainJob
Result: TypeAlias = Verified | Prepared | Trained | JobFailed | Progress

Deliver: TypeAlias = Callable[[Job, Result], None]
"""Takes a job's results: any number of ``Progress``, then exactly one of the others. It must not raise and
must not block: a worker process's results come on a thread of their own, an inline worker's from within
``submit``. By then the worker is free again."""


class Worker(Protocol):
    """Runs one job at a time and delivers its results to the ``Deliver`` it was built with."""

    @property
    def busy(self) -> bool:
        """Whether a job is under way; ``submit`` is allowed only when not."""
        ...

    @property
    def process_id(self) -> int | None:
        """The process that works, or lingers for the next job; ``None`` where there is none."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job and return at once (an inline worker: after it is done).

        Raises:
            RuntimeError: the worker is busy, or stopped.
        """
        ...

    def cancel(self) -> None:
        """Give up the job under way, if any: its result is ``JobFailed('cancelled', retryable=True)``."""
        ...

    def stop(self) -> None:
        """Cancel, end the process and wait for its end (bounded). The worker takes no job after."""
        ...


_KINDS: dict[str, type[Job | Result]] = {
    kind.__name__: kind
    for kind in (VerifyJob, PrepareJob, TrainJob, Verified, Prepared, Trained, JobFailed, Progress)
}


def to_body(value: Job | Result) -> dict[str, Any]:
    """A job or result as a map of msgpack's own types."""
    body: dict[str, Any] = {"kind": type(value).__name__}
    for spec in dataclasses.fields(value):
        content = getattr(value, spec.name)
        if isinstance(content, TrainingPlan | VersionId):
            content = dict(content.to_body())
        body[spec.name] = content
    return body


def from_body(body: object) -> Job | Result:
    """The job or result of such a map.

    Raises:
        MessageError: not such a map.
    """
    name = body.get("kind") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(name, str) or name not in _KINDS:
        raise MessageError("neither a job nor a result")
    kind: type[Any] = _KINDS[name]
    values = {key: tuple(item) if isinstance(item, list) else item for key, item in body.items()}
    del values["kind"]
    try:
        if kind is TrainJob:
            values["plan"] = TrainingPlan.from_body(Fields(values["plan"]))
            values["base"] = VersionId.from_body(Fields(values["base"]))
        value: Job | Result = kind(**values)
    except (TypeError, KeyError) as error:
        raise MessageError(f"not a {kind.__name__}: {error}") from None
    return value
