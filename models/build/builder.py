"""``build_artifact``: from an exported forward graph to a checked training artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from fl_protocol.artifact import ArtifactManifest, Input, Parameter
from fl_protocol.blob import BlobRef
from models.build.assemble import EXTRA_HYPER, assemble
from models.build.gates import (
    check_gradients,
    check_parameters,
    check_runtimes,
    check_same_model,
    draw_batch,
)
from models.build.lift import Forward, lift, load_model
from models.build.losses import LOSSES
from models.build.optimizers import OPTIMIZERS
from models.runtime.artifact import GOLDEN_FILE, WEIGHTS_FILE, TrainingArtifact
from models.runtime.golden import GoldenSteps
from models.runtime.numpy_runtime import NumpyRuntime

__all__ = ["build_artifact"]

_DTYPES = {1: "float32", 6: "int32"}
_GOLDEN_SEED = 3
_GOLDEN_STEPS: tuple[tuple[int, Mapping[str, float]], ...] = (
    (8, {"lr": 0.1, "momentum": 0.0, "mu": 0.0, "clip": 0.0}),
    (5, {"lr": 0.05, "momentum": 0.9, "mu": 0.0, "clip": 0.5}),
    (6, {"lr": 0.1, "momentum": 0.5, "mu": 0.1, "clip": 0.0}),
)
"""Rows and scalars of each golden step: other batch sizes, clipping on and off, momentum, FedProx."""


def build_artifact(
    model: onnx.ModelProto | Path | str,
    *,
    loss: str,
    optimizer: str = "sgd",
    metrics: Sequence[str] = ("accuracy",),
    out: Path | str | None = None,
    name: str | None = None,
    parameters: Sequence[str] | None = None,
    expect_params: int | None = None,
    class_names: Sequence[str] = (),
    normalisation: Mapping[str, float] | None = None,
) -> TrainingArtifact:
    """Build a training artifact; with ``out`` it is written to that folder, else it stays in memory.

    ``parameters`` are shell patterns of the initializers to train (all float32 ones of at least one
    dimension where not given), ``expect_params`` is the number of scalars that you know the model to
    have. The same model gives the same bytes.

    Raises:
        ArtifactError: the model cannot be trained as it is, or a gate found the result wrong; nothing
            is written then.
        StorageError: the folder cannot be written.
    """
    source = load_model(model)
    forward = lift(source, patterns=parameters)
    check_parameters(forward.parameters, expect_params)
    content = assemble(forward, loss=loss, optimizer=optimizer, metrics=metrics)
    content[WEIGHTS_FILE] = b"".join(array.astype("<f4").tobytes() for array in forward.parameters.values())
    fallback = Path(model).stem if isinstance(model, Path | str) else source.graph.name
    manifest = ArtifactManifest(
        name=name or fallback or "model",
        loss=loss,
        metrics=tuple(metrics),
        optimizer=optimizer,
        slots=OPTIMIZERS[optimizer].slots,
        hyper={**OPTIMIZERS[optimizer].hyper, **EXTRA_HYPER},
        parameters=tuple(Parameter(name=key, shape=array.shape) for key, array in forward.parameters.items()),
        inputs=_inputs(forward, loss),
        files={file: BlobRef.of(octets) for file, octets in content.items()},
        class_names=tuple(class_names),
        normalisation=dict(normalisation or {}),
    )
    draft = TrainingArtifact.of(manifest, content)
    check_same_model(forward, draft)
    check_gradients(draft)
    content[GOLDEN_FILE] = _golden(draft)
    files = {**manifest.files, GOLDEN_FILE: BlobRef.of(content[GOLDEN_FILE])}
    artifact = TrainingArtifact.of(replace(manifest, files=files), content)
    check_runtimes(artifact)
    return artifact if out is None else artifact.save(out)


def _inputs(forward: Forward, loss: str) -> tuple[Input, ...]:
    graph, chosen = forward.graph, LOSSES[loss]
    shapes = {
        "x": (graph.inputs["x"][1], graph.inputs["x"][0]),
        "y": (chosen.label_shape(graph.shape(forward.output)), chosen.label),
    }
    return tuple(
        Input(
            name=key,
            shape=tuple(dim if isinstance(dim, int) else -1 for dim in shape),
            dtype=_DTYPES[element],
        )
        for key, (shape, element) in shapes.items()
    )


def _golden(draft: TrainingArtifact) -> bytes:
    bits = np.random.PCG64(_GOLDEN_SEED)
    plan = [
        (draw_batch(draft, bits, rows), {key: hyper[key] for key in draft.manifest.hyper})
        for rows, hyper in _GOLDEN_STEPS
    ]
    # Double precision, rounded once: another machine's libm or BLAS records the same bytes.
    return GoldenSteps.record(draft, NumpyRuntime(np.float64).open(draft), plan).to_bytes()
