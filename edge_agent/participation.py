"""One participation: from the published weights to an encoded update."""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_agent.jobs import JobFailed, Trained, TrainJob
from edge_agent.trainer import Samples, Trainer, Weights, planned_steps
from fl_protocol.codec import codec_for, codec_seed, decode_model
from fl_protocol.errors import ConfigError, LayoutError
from fl_protocol.layout import TensorLayout
from fl_protocol.update import MAX_METRICS
from fl_protocol.version import VersionId
from models.runtime import join_flat, split_flat

__all__ = ["SampleParts", "participate", "training_seed"]

_LARGEST_METRIC = 1e38
_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleParts:
    """A device's samples: those to train on, and those that are never trained on."""

    training: Samples
    held_out: Samples


def training_seed(device_seed: bytes, base: VersionId) -> int:
    """The seed of one device's training on one version, in [0, 2**32): every library takes such a one."""
    name = base.epoch.to_bytes(8, "big") + base.number.to_bytes(8, "big") + base.digest
    return int.from_bytes(hashlib.sha256(b"train" + device_seed + name).digest()[:4], "big")


def participate(
    job: TrainJob,
    *,
    layout: TensorLayout,
    published: bytes,
    trainer: Trainer,
    samples: SampleParts,
    should_stop: Callable[[int], bool],
    runtime: str = "",
) -> Trained | JobFailed:
    """Evaluate the published weights, train from them, evaluate again, and encode the difference.

    ``published`` is the downloaded content of ``encode_model``. ``should_stop`` is asked before each step
    with the steps taken so far. A training cut short gives an update that counts for its share; one whose
    weights are not finite gives none.

    Raises:
        CodecError: an unknown codec, or published weights that do not decode.
        ConfigError: a trainer whose sums no update can carry.
        LayoutError: the artifact is not of the job's layout, or the trainer returns other tensors.
    """
    codec = codec_for(job.codec)
    if layout.fingerprint != job.fingerprint:
        raise LayoutError(
            f"the artifact has layout {layout.fingerprint.hex()}, the task {job.fingerprint.hex()}"
        )
    examples = len(samples.training)
    if not examples:
        return JobFailed(reason="there is no sample to train on", retryable=True)
    base = decode_model(published, layout)
    base.setflags(write=False)
    weights = split_flat(base, layout)
    plan = replace(job.plan, seed=training_seed(job.device_seed, job.base))
    metrics = _evaluated("before", trainer, weights, samples.held_out)
    asked = itertools.count()
    started = time.process_time()
    result = trainer.train(weights, samples.training, plan, lambda: should_stop(next(asked)))
    training_cpu_s = time.process_time() - started
    steps = int(result.steps)  # a user's trainer may count in numpy's integers, which do not travel
    if steps < 1:
        return JobFailed(reason="the time allowed ended before the first step", retryable=True)
    trained = _flat(result.weights, layout)
    if not np.isfinite(trained).all():
        return JobFailed(reason="training diverged: a weight is not finite", retryable=False)
    metrics |= _evaluated("after", trainer, split_flat(trained, layout), samples.held_out)
    np.subtract(trained, base, out=trained)
    planned = planned_steps(plan, examples)
    return Trained(
        update_id=job.update_id,
        payload=codec.encode(trained, layout, codec_seed(job.update_id)),
        num_examples=min(examples, job.max_examples),
        steps_done=min(steps, planned),
        steps_planned=planned,
        metrics=metrics,
        runtime=runtime,
        training_cpu_s=training_cpu_s,
    )


def _flat(weights: Weights, layout: TensorLayout) -> NDArray[np.float32]:
    strange = weights.keys() - {tensor.name for tensor in layout.tensors}
    if strange:
        raise LayoutError(f"the trainer returned tensors that the model has not: {sorted(strange)}")
    return join_flat({name: np.asarray(tensor, np.float32) for name, tensor in weights.items()}, layout)


def _evaluated(prefix: str, trainer: Trainer, weights: Weights, held_out: Samples) -> dict[str, float]:
    """Sums and count under ``prefix``; a sum that no message can carry is left out."""
    if not len(held_out):
        return {}
    sums: Mapping[str, float] = {**trainer.evaluate(weights, held_out), "count": len(held_out)}
    if len(sums) > MAX_METRICS or any(len(name) > _LONGEST_NAME for name in sums):
        raise ConfigError(
            f"the trainer's evaluate gives {len(sums) - 1} sums named up to {max(map(len, sums))} characters",
            hint=f"an update carries {MAX_METRICS - 1}, with names of up to {_LONGEST_NAME} characters",
        )
    return {
        f"{prefix}.{name}": float(value)
        for name, value in sums.items()
        if math.isfinite(value) and abs(value) < _LARGEST_METRIC
    }
