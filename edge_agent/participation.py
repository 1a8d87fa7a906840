"""One participation: from the published weights to an encoded update."""

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_agent.checkpoint import Checkpoint
from edge_agent.jobs import JobFailed, Trained, TrainJob
from edge_agent.personal import PersonalTensors, pack_personal
from edge_agent.residual import added, remainder
from edge_agent.trainer import Samples, Trainer, TrainingResult, Weights, brings_samples, planned_steps
from edge_agent.trainer_fault import training_code
from fl_protocol.codec import UpdateCodec, codec_for, codec_seed, decode_model
from fl_protocol.errors import ConfigError, LayoutError
from fl_protocol.layout import TensorLayout
from fl_protocol.update import MAX_METRICS
from fl_protocol.version import VersionId
from models.runtime import join_flat, split_flat

__all__ = ["Encode", "SampleParts", "encoded", "participate", "training_seed"]

_LARGEST_METRIC = 1e38
_LONGEST_NAME = 64
_NONE: PersonalTensors = MappingProxyType({})

Encode: TypeAlias = Callable[[UpdateCodec, NDArray[np.float32], TensorLayout, bytes], bytes]
"""``encode(codec, delta, layout, seed)``: the payload of a delta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleParts:
    """A device's samples: those to train on, and those that are never trained on."""

    training: Samples
    held_out: Samples


def training_seed(device_seed: bytes, base: VersionId) -> int:
    """The seed of one device's training on one version, in [0, 2**32): every library takes such a one."""
    name = base.epoch.to_bytes(8, "big") + base.number.to_bytes(8, "big") + base.digest
    return int.from_bytes(hashlib.sha256(b"train" + device_seed + name).digest()[:4], "big")


def encoded(codec: UpdateCodec, delta: NDArray[np.float32], layout: TensorLayout, seed: bytes) -> bytes:
    """What the codec itself makes of a delta."""
    return codec.encode(delta, layout, seed)


def participate(
    job: TrainJob,
    *,
    layout: TensorLayout,
    published: bytes,
    trainer: Trainer,
    samples: SampleParts,
    should_stop: Callable[[int], bool],
    runtime: str = "",
    personal: PersonalTensors = _NONE,
    order: Sequence[str] = (),
    checkpoint: Checkpoint | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    decode: Callable[[bytes, TensorLayout], NDArray[np.float32]] = decode_model,
    encode: Encode = encoded,
) -> Trained | JobFailed:
    """Evaluate the published weights, train from them, evaluate again, and encode the difference.

    ``published`` is the downloaded content of ``encode_model``. ``should_stop`` is asked before each step
    with the steps taken so far. A training cut short gives an update that counts for its share; one whose
    weights are not finite gives none, nor does one that was ``cancelled``, which leaves a checkpoint.
    ``decode`` makes weights of what was downloaded, perhaps ones that others read too; ``encode`` makes the
    payload as the codec does. ``personal`` holds the
    personal tensors as this device has them. ``order`` names the tensors as the
    trainer is to be given them, where that is not the wire order, in which weights come before buffers.

    Raises:
        CodecError: an unknown codec, or published weights that do not decode.
        ConfigError: a trainer whose sums no update can carry.
        LayoutError: the artifact is not of the job's layout, or the trainer returns other tensors.
        TrainerFault: whatever the trainer raises, but for ``MemoryError``.
    """
    codec = codec_for(job.codec)
    if layout.fingerprint != job.fingerprint:
        raise LayoutError(
            f"the artifact has layout {layout.fingerprint.hex()}, the task {job.fingerprint.hex()}"
        )
    examples = len(samples.training)
    if not examples and not brings_samples(trainer):
        return JobFailed(reason="there is no sample to train on", retryable=True)
    base = decode(published, layout)
    base.setflags(write=False)
    weights = _ordered({**split_flat(base, layout), **personal}, order)
    seed = training_seed(job.device_seed, job.base)
    plan = replace(job.plan, seed=seed, version=job.base.number)
    own = not job.trainer
    with training_code(own=own):
        sums = _evaluated(trainer, weights, samples.held_out)
    metrics = _named("before", sums)
    asked = itertools.count()

    def stop() -> bool:
        before = checkpoint.resumed if checkpoint is not None else 0
        told = should_stop(before + next(asked))
        if told and checkpoint is not None and cancelled():
            checkpoint.leave()
        return told

    started = time.process_time()
    with training_code(own=own):
        result = trainer.train(weights, samples.training, plan, stop)
    training_cpu_s = time.process_time() - started
    if cancelled():
        return JobFailed(reason="cancelled", retryable=True)
    steps = int(result.steps)  # a user's trainer may count in numpy's integers, which do not travel
    if steps < 1:
        return JobFailed(reason="the time allowed ended before the first step", retryable=True)
    shared, kept = _apart(result.weights, personal)
    trained = _flat(shared, layout)
    if not all(np.isfinite(tensor).all() for tensor in (trained, *kept.values())):
        return JobFailed(reason="training diverged: a weight is not finite", retryable=False)
    examples = _counted(result, trainer, examples)
    if examples < 1:
        return JobFailed(reason="the trainer counted no example", retryable=True)
    # Before evaluate, in which a trainer may go on using the arrays that it returned.
    state = pack_personal(kept)
    delta = added(trained - base, job.codec_state, codec, layout)
    payload = encode(codec, delta, layout, codec_seed(job.update_id))
    left = remainder(delta, payload, codec, layout, update_id=job.update_id)
    if len(samples.held_out) or brings_samples(trainer):
        trained.setflags(write=False)
        reached = _ordered({**split_flat(trained, layout), **kept}, order)
        with training_code(own=own):
            sums = _evaluated(trainer, reached, samples.held_out)
        metrics |= _named("after", sums)
    metrics |= _of_training(result.sums, metrics)
    planned = planned_steps(plan, examples)
    return Trained(
        update_id=job.update_id,
        payload=payload,
        num_examples=min(examples, job.max_examples),
        steps_done=min(steps, planned),
        steps_planned=planned,
        metrics=metrics,
        runtime=runtime,
        training_cpu_s=training_cpu_s,
        device_state=state,
        codec_state=left,
    )


def _counted(result: TrainingResult, trainer: Trainer, handed_over: int) -> int:
    """Distinct examples; of the samples that were handed over none can count twice."""
    if result.num_examples is None:
        return handed_over
    counted = int(result.num_examples)
    return counted if brings_samples(trainer) else min(counted, handed_over)


def _ordered(weights: Weights, order: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """All of ``weights``, those named in ``order`` first."""
    return {name: weights[name] for name in dict.fromkeys((*order, *weights)) if name in weights}


def _apart(weights: Weights, personal: PersonalTensors) -> tuple[Weights, dict[str, NDArray[np.float32]]]:
    """The tensors that are shared, and the personal ones: those not returned stay as they were."""
    kept = {name: np.asarray(weights.get(name, tensor), np.float32) for name, tensor in personal.items()}
    for name, tensor in kept.items():
        if tensor.shape != personal[name].shape:
            raise LayoutError(
                f"personal tensor {name!r} came back as {tensor.shape}, it has {personal[name].shape}"
            )
    return {name: tensor for name, tensor in weights.items() if name not in personal}, kept


def _of_training(sums: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    """Sums over the steps of the training, as many as an update has room for."""
    taken = {name for name in known if name.startswith("after.")}
    room = MAX_METRICS - len(taken)
    named = {f"after.{name}": float(value) for name, value in sums.items() if len(name) <= _LONGEST_NAME}
    fit = [(name, value) for name, value in named.items() if name not in taken and _travels(value)]
    return dict(fit[:room])


def _travels(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST_METRIC


def _flat(weights: Weights, layout: TensorLayout) -> NDArray[np.float32]:
    strange = weights.keys() - {tensor.name for tensor in layout.tensors}
    if strange:
        raise LayoutError(f"the trainer returned tensors that the model has not: {sorted(strange)}")
    return join_flat({name: np.asarray(tensor, np.float32) for name, tensor in weights.items()}, layout)


def _evaluated(trainer: Trainer, weights: Weights, held_out: Samples) -> Mapping[str, float]:
    """The trainer's sums and their ``count``."""
    if brings_samples(trainer):
        return {"count": 0, **trainer.evaluate(weights, held_out)}
    return {**trainer.evaluate(weights, held_out), "count": len(held_out)} if len(held_out) else {}


def _named(prefix: str, sums: Mapping[str, float]) -> dict[str, float]:
    """Sums and count under ``prefix``; a sum that no message can carry is left out."""
    if not sums.get("count"):
        return {}
    if len(sums) > MAX_METRICS or any(len(name) > _LONGEST_NAME for name in sums):
        raise ConfigError(
            f"the trainer's evaluate gives {len(sums) - 1} sums named up to {max(map(len, sums))} characters",
            hint=f"an update carries {MAX_METRICS - 1}, with names of up to {_LONGEST_NAME} characters",
        )
    return {f"{prefix}.{name}": float(value) for name, value in sums.items() if _travels(value)}
