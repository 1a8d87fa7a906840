"""From where a training goes on: the personal tensors that the last one left, and a checkpoint of its own."""

import hashlib
import logging
from pathlib import Path

from edge_agent.checkpoint import Checkpoint, binding_of, read_checkpoint
from edge_agent.jobs import TrainJob
from edge_agent.participation import SampleParts
from edge_agent.personal import PersonalTensors, initial_personal, personal_tensors
from edge_agent.stored_samples import StoredSamples
from fl_protocol.clock import Clock
from fl_protocol.errors import LayoutError, StorageError
from models.runtime import TrainingArtifact

__all__ = ["find_checkpoint", "find_personal"]

_log = logging.getLogger(__name__)


def find_personal(job: TrainJob, artifact: TrainingArtifact) -> PersonalTensors:
    """The personal tensors to train from: the device's own where they fit, else the artifact's.

    Raises:
        ArtifactError: the artifact has more than a device keeps, or is damaged.
    """
    try:
        return personal_tensors(artifact, job.device_state)
    except (StorageError, LayoutError) as error:
        _log.warning("personal tensors start anew: %s", error.args[0])
        return initial_personal(artifact)


def find_checkpoint(
    job: TrainJob, artifact: TrainingArtifact, runtime: str, samples: SampleParts, *, clock: Clock
) -> tuple[Checkpoint | None, SampleParts]:
    """The checkpoint of this training, and the samples it trains on: where it goes on, those that it began
    with, without any that came since.

    A checkpoint of another training is removed.

    Raises:
        StorageError: the disk refuses.
    """
    if not job.checkpoint_path:
        return None, samples
    path = Path(job.checkpoint_path)
    saved = read_checkpoint(path)
    training = samples.training
    if saved is not None and isinstance(training, StoredSamples):
        training = training.until(saved.newest)
    binding = _binding(job, artifact, runtime, len(training))
    if saved is not None and (saved.binding, saved.samples) != (binding, len(training)):
        saved, training = None, samples.training
        binding = _binding(job, artifact, runtime, len(training))
    if saved is None:
        _remove(path)
    checkpoint = Checkpoint(
        path,
        binding=binding,
        samples=len(training),
        newest=training.newest if isinstance(training, StoredSamples) else 0,
        saved=saved,
        every_s=job.checkpoint_every_s,
        clock=clock,
    )
    return checkpoint, SampleParts(training=training, held_out=samples.held_out)


def _binding(job: TrainJob, artifact: TrainingArtifact, runtime: str, samples: int) -> bytes:
    """All that the course of a training depends on, besides the content of its samples."""
    return binding_of(
        {
            "base": dict(job.base.to_body()),
            "artifact": artifact.digest,
            "weights": Path(job.weights_path).name,
            "plan": dict(job.plan.to_body()),
            "seed": hashlib.sha256(b"checkpoint" + job.device_seed).digest(),
            "samples": samples,
            "runtime": runtime,
            "trainer": job.trainer,
            "state": hashlib.sha256(job.device_state).digest(),
        }
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror}") from error
