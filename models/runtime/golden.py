"""Golden steps: recorded training steps that every runtime must reproduce before it may train.

Recorded once, in double precision, at the artifact's build. Two runtimes never agree bit for bit, and
after many steps not even closely (one ReLU that flips is enough); three steps agree to 1e-5.
"""

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.runtime.artifact import GOLDEN_FILE, TrainingArtifact
from models.runtime.session import CORRECTION, Array, Batch, Session, zero_slots

__all__ = ["TOLERANCE", "GoldenStep", "GoldenSteps", "deviation"]

TOLERANCE = 1e-5
"""Largest deviation at which a runtime counts as working."""
MAX_STEPS = 16
MAX_UNPACKED_BYTES = 1 << 26
_SAMPLED = 64
_GRID = 2.0**30
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
                GoldenStep(
                    batch=batch,
                    hyper=hyper,
                    expected={key: _on_grid(values) for key, values in expected.items()},
                )
                for (batch, hyper), expected in zip(plan, observed, strict=True)
            )
        )

    def to_bytes(self) -> bytes:
        """The content of ``golden.npz``: plain arrays, not compressed, the same bytes every time."""
        arrays: dict[str, Any] = {}
        for index, step in enumerate(self.steps):
            arrays[f"{index}.x"] = step.batch.x
            arrays[f"{index}.y"] = step.batch.y
            arrays[f"{index}.sample_weight"] = step.batch.sample_weight
            arrays[f"{index}.hyper"] = np.array([step.hyper[key] for key in sorted(step.hyper)], np.float32)
            for key, values in step.expected.items():
                arrays[f"{index}.{key}"] = values.astype(np.float32)
        content = io.BytesIO()
        np.savez(content, **arrays)  # numbers alone; NumPy 1.x would store a keyword as one more array
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
    weights: Mapping[str, Array] = _drawn_weights(artifact)
    anchor, slots = weights, zero_slots(artifact)
    correction = anchor if CORRECTION in artifact.manifest.hyper else None
    observed: list[dict[str, Array]] = []
    for batch, hyper in plan:
        sums = session.evaluate(weights, batch)
        output = session.infer(weights, batch.x)
        result = session.step(weights, slots, batch, hyper, anchor, correction=correction)
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


def _drawn_weights(artifact: TrainingArtifact) -> dict[str, NDArray[np.float32]]:
    """Every tensor that a step changes, the same bits on every machine: raw PCG64 words.

    A weight's values are within the power of two below ``1 / sqrt(longest dimension)``, a running
    statistic's from 1/2 to 3/2, so that it may be a variance.
    """
    drawn: dict[str, NDArray[np.float32]] = {}
    for entry in artifact.manifest.parameters:
        if entry.role == "frozen":
            continue
        seed = int.from_bytes(hashlib.sha256(b"golden" + entry.name.encode()).digest()[:8], "little")
        words = np.random.PCG64(seed).random_raw(math.prod(entry.shape)) >> np.uint64(40)
        unit = (words.astype(np.float32) - np.float32(1 << 23)) * np.float32(2.0**-23)
        if entry.kind == "buffer":
            values = unit * np.float32(0.5) + np.float32(1)
        else:
            values = unit * np.float32(2.0 ** -(max(entry.shape, default=1).bit_length() // 2))
        drawn[entry.name] = values.reshape(entry.shape)
    return drawn


def _on_grid(values: Array) -> Array:
    """``values`` as multiples of 2**-30, far below the tolerance and far above double precision's noise.

    A gradient that is 0 by rights comes out as another 1e-18 on each machine; the file should not.
    """
    grid: Array = np.rint(np.asarray(values, np.float64) * _GRID) / _GRID + 0.0  # + 0.0: no minus zeros
    return grid


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
    rows = {key: arrays[f"{index}.{key}"] for key in ("x", "y", "sample_weight")}
    return GoldenStep(
        # The file is little-endian; on a machine that is not, no runtime takes its arrays as they are.
        batch=Batch(**{key: array.astype(array.dtype.newbyteorder("=")) for key, array in rows.items()}),
        hyper=dict(zip(hyper, scalars, strict=True)),
        expected={key: arrays[f"{index}.{key}"] for key in _RECORDED},
    )
