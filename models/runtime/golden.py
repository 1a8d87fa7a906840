"""Golden steps: recorded training steps that every runtime must reproduce before it may train.

Recorded once, in double precision, at the artifact's build. Two runtimes never agree bit for bit, and
after many steps not even closely (one ReLU that flips is enough); three steps agree to 1e-5.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from fl_protocol.layout import TensorLayout
from models.runtime.artifact import GOLDEN_FILE, TrainingArtifact
from models.runtime.flat import split_flat
from models.runtime.session import Array, Batch, Session, zero_slots

__all__ = ["TOLERANCE", "GoldenStep", "GoldenSteps", "deviation"]

TOLERANCE = 1e-5
"""Largest deviation at which a runtime counts as working."""
MAX_STEPS = 16
MAX_UNPACKED_BYTES = 1 << 26
_SAMPLED = 64
_RECORDED = ("evaluated", "output", "slots", "stepped", "weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenStep:
    """One step: what goes in, and what came out as five flat vectors (``observe``)."""

    batch: Batch
    hyper: Mapping[str, float]
    expected: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSteps:
    """Steps in a row: from drawn weights and zero slots, each from what the one before gave.

    The weights are drawn (``_drawn_weights``) and not the artifact's own, so that a device need not
    fetch ``weights.bin``, which it never trains from.
    """

    steps: tuple[GoldenStep, ...]

    @classmethod
    def record(
        cls, artifact: TrainingArtifact, session: Session, plan: Sequence[tuple[Batch, Mapping[str, float]]]
    ) -> "GoldenSteps":
        """Run the steps on a session and keep what came out."""
        observed = _observe(artifact, session, plan)
        return cls(
            steps=tuple(
                GoldenStep(batch=batch, hyper=hyper, expected=expected)
                for (batch, hyper), expected in zip(plan, observed, strict=True)
            )
        )

    def to_bytes(self) -> bytes:
        """The content of ``golden.npz``: plain arrays, not compressed, the same bytes every time."""
        arrays: dict[str, Array] = {}
        for index, step in enumerate(self.steps):
            arrays[f"{index}.x"] = step.batch.x
            arrays[f"{index}.y"] = step.batch.y
            arrays[f"{index}.sample_weight"] = step.batch.sample_weight
            arrays[f"{index}.hyper"] = np.array([step.hyper[key] for key in sorted(step.hyper)], np.float32)
            for key, values in step.expected.items():
                arrays[f"{index}.{key}"] = values.astype(np.float32)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, hyper: Sequence[str]) -> "GoldenSteps":
        """Read ``golden.npz``; ``hyper`` names the artifact's scalars.

        Raises:
            ArtifactError: not such a file, or one that unpacks to more than 64 MiB.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED_BYTES:
                    raise ArtifactError(f"{GOLDEN_FILE} unpacks to more than {MAX_UNPACKED_BYTES} bytes")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                count = sum(1 for name in arrays.files if name.endswith(".x"))
                if not 0 < count <= MAX_STEPS:
                    raise ArtifactError(f"{GOLDEN_FILE} holds {count} steps, not 1 to {MAX_STEPS}")
                return cls(steps=tuple(_read_step(arrays, index, sorted(hyper)) for index in range(count)))
        except ArtifactError:
            raise
        except Exception as error:  # zipfile and numpy answer damage with a dozen kinds of exception
            raise ArtifactError(f"{GOLDEN_FILE} cannot be read: {error}") from None


def deviation(artifact: TrainingArtifact, session: Session) -> float:
    """Run the artifact's golden steps on a session.

    Returns the largest ``|got - recorded| / max(1, |recorded|)`` over all that was recorded; infinite
    where a value is not finite.

    Raises:
        ArtifactError: the recording does not read or does not fit, or the runtime fails.
    """
    golden = GoldenSteps.from_bytes(artifact.read(GOLDEN_FILE), tuple(artifact.manifest.hyper))
    observed = _observe(artifact, session, [(step.batch, step.hyper) for step in golden.steps])
    worst = 0.0
    for step, got in zip(golden.steps, observed, strict=True):
        for key in _RECORDED:
            expected = step.expected[key].astype(np.float64)
            if got[key].shape != expected.shape:
                raise ArtifactError(
                    f"{GOLDEN_FILE}: {key} is {expected.shape}, the graph gives {got[key].shape}"
                )
            error = np.abs(got[key] - expected) / np.maximum(1, np.abs(expected))
            worst = max(worst, float(error.max(initial=0)) if np.isfinite(error).all() else np.inf)
    return worst


def _observe(
    artifact: TrainingArtifact, session: Session, plan: Sequence[tuple[Batch, Mapping[str, float]]]
) -> list[dict[str, Array]]:
    """Run the steps; per step: sums, a sample and the norm of every tensor, evaluation, output.

    A sample keeps the file small for a large model, the norm covers what the sample leaves out.
    """
    weights: Mapping[str, Array] = split_flat(_drawn_weights(artifact.layout), artifact.layout)
    anchor, slots = weights, zero_slots(artifact)
    observed: list[dict[str, Array]] = []
    for batch, hyper in plan:
        sums = session.evaluate(weights, batch)
        output = session.infer(weights, batch.x)
        result = session.step(weights, slots, batch, hyper, anchor)
        weights, slots = result.weights, result.slots
        observed.append(
            {
                "evaluated": np.array([sums[key] for key in sorted(sums)]),
                "output": np.asarray(output, np.float64).reshape(-1),
                "slots": _sketch(slots),
                "stepped": np.array([*(result.sums[key] for key in sorted(result.sums)), result.grad_norm]),
                "weights": _sketch(weights),
            }
        )
    return observed


def _drawn_weights(layout: TensorLayout) -> NDArray[np.float32]:
    """float32[layout.size], the same bits on every machine: raw PCG64 words, each tensor's values within
    the power of two below ``1 / sqrt(longest dimension)``."""
    flat = np.empty(layout.size, np.float32)
    for tensor, start in layout.offsets():
        seed = int.from_bytes(hashlib.sha256(b"golden" + tensor.name.encode()).digest()[:8], "little")
        words = np.random.PCG64(seed).random_raw(tensor.size) >> np.uint64(40)
        unit = (words.astype(np.float32) - np.float32(1 << 23)) * np.float32(2.0**-23)
        bound = 2.0 ** -(max(tensor.shape, default=1).bit_length() // 2)
        flat[start : start + tensor.size] = unit * np.float32(bound)
    return flat


def _sketch(tensors: Mapping[str, Array]) -> NDArray[np.float64]:
    pieces: list[NDArray[np.float64]] = [np.zeros(0)]
    for name in sorted(tensors):
        flat = np.asarray(tensors[name], np.float64).reshape(-1)
        count = min(flat.size, _SAMPLED)
        spread = np.arange(count) * (flat.size - 1) // max(count - 1, 1)
        pieces += [flat[spread], np.sqrt(np.square(flat).sum(keepdims=True))]
    return np.concatenate(pieces)


def _read_step(arrays: Mapping[str, Any], index: int, hyper: Sequence[str]) -> GoldenStep:
    scalars = [float(value) for value in arrays[f"{index}.hyper"]]
    return GoldenStep(
        batch=Batch(
            x=arrays[f"{index}.x"], y=arrays[f"{index}.y"], sample_weight=arrays[f"{index}.sample_weight"]
        ),
        hyper=dict(zip(hyper, scalars, strict=True)),
        expected={key: arrays[f"{index}.{key}"] for key in _RECORDED},
    )
