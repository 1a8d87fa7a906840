"""``build_artifact``: from an exported forward graph to a checked training artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fl_protocol.artifact import ArtifactManifest, Input, Parameter
from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.build.assemble import assemble, hyper_of
from models.build.drawn_rows import draw_batch
from models.build.exporter import check_nothing_lost
from models.build.gates import (
    check_gradients,
    check_modes,
    check_parameters,
    check_runtimes,
    check_same_model,
)
from models.build.lift import Forward, lift, load_model
from models.build.losses import LOSSES
from models.build.optimizers import OPTIMIZERS
from models.build.uniform import SEED, SEEDS
from models.runtime.artifact import GOLDEN_FILE, WEIGHTS_FILE, TrainingArtifact
from models.runtime.golden import GoldenSteps
from models.runtime.numpy_runtime import NumpyRuntime
from models.runtime.session import Session

__all__ = ["build_artifact"]

_DTYPES = {1: "float32", 6: "int32"}
_GOLDEN_SEEDS = (3, 4, 5, 6)
_GOLDEN_STEPS: tuple[tuple[int, Mapping[str, float]], ...] = (
    (8, {"lr": 0.1, "momentum": 0.0, "mu": 0.0, "clip": 0.0, SEED: 1.0}),
    (5, {"lr": 0.05, "momentum": 0.9, "mu": 0.0, "clip": 0.5, SEED: 123_456.0}),
    (6, {"lr": 0.1, "momentum": 0.5, "mu": 0.1, "clip": 0.0, SEED: SEEDS - 1.0}),
)
"""Rows and scalars of each golden step: other batch sizes, clipping on and off, momentum, FedProx, seeds."""
_GOLDEN_DAMPING = {"epsilon": 0.05}
"""Adam divides by the root of tiny numbers, which are rounding and differ from runtime to runtime."""


def build_artifact(
    model: onnx.ModelProto | Path | str,
    *,
    loss: str,
    optimizer: str = "sgd",
    metrics: Sequence[str] | None = None,
    out: Path | str | None = None,
    name: str | None = None,
    parameters: Sequence[str] | None = None,
    train: Sequence[str] | None = None,
    personal: Sequence[str] | None = None,
    batch_norm: str | None = None,
    correction: bool = False,
    expect_params: int | None = None,
    class_names: Sequence[str] = (),
    normalisation: Mapping[str, float] | None = None,
    runtimes: Sequence[str] = ("onnx",),
    batch: int = 32,
) -> TrainingArtifact:
    """Build a training artifact; with ``out`` it is written to that folder, else it stays in memory.

    ``metrics`` are the loss's own where not given. ``parameters`` are shell patterns of the initializers
    that are parameters (all float32 ones of at least one dimension where not given). Those that match
    ``personal`` are trained, but start from the artifact, stay on the device for ever and are no part of an
    update; of the others, ``train`` are those that are trained: what is left is frozen and travels once, with
    the artifact. ``batch_norm`` says what becomes of running statistics: ``local`` (each device keeps its
    own; the default), ``averaged`` (they travel) or ``frozen`` (as exported). With ``correction`` the step
    graph takes a tensor for each weight that is added to its gradient, as SCAFFOLD needs it.

    ``expect_params`` is the number of scalars that you know the model to have, running statistics left out.
    ``runtimes`` are the kinds of graphs to write: ``onnx`` always, ``tflite`` where named, whose batch is
    fixed to ``batch`` rows (8 at least); a device pads shorter ones. The same model gives the same bytes,
    but for golden steps on which a runtime here happens to round otherwise: then others are recorded.

    Raises:
        ArtifactError: the model cannot be trained as it is, or a gate found the result wrong; nothing
            is written then.
        StorageError: the folder cannot be written.
    """
    source = load_model(model)
    forward = lift(source, patterns=parameters, train=train, personal=personal, batch_norm=batch_norm)
    check_parameters(forward, expect_params)
    if expect_params is None and parameters is None:
        check_nothing_lost(source, forward.parameters)
    if metrics is None:
        metrics = LOSSES[loss].metrics if loss in LOSSES else ()
    content = assemble(forward, loss=loss, optimizer=optimizer, metrics=metrics, correction=correction)
    content |= _further_graphs(content, runtimes, batch)
    content[WEIGHTS_FILE] = b"".join(array.astype("<f4").tobytes() for array in forward.parameters.values())
    fallback = Path(model).stem if isinstance(model, Path | str) else source.graph.name
    manifest = ArtifactManifest(
        name=name or fallback or "model",
        loss=loss,
        metrics=tuple(metrics),
        **_state(forward, optimizer, correction=correction),
        inputs=_inputs(forward, loss),
        files={file: BlobRef.of(octets) for file, octets in content.items()},
        class_names=tuple(class_names),
        normalisation=dict(normalisation or {}),
    )
    draft = TrainingArtifact.of(manifest, content)
    check_same_model(forward, draft)
    # Double precision, rounded once: another machine's libm or BLAS records the same golden steps.
    session = NumpyRuntime(np.float64).open(draft)
    check_gradients(forward, draft, session)
    check_modes(forward, draft, session)
    for seed in _GOLDEN_SEEDS:
        content[GOLDEN_FILE] = _golden(draft, session, seed)
        files = {**manifest.files, GOLDEN_FILE: BlobRef.of(content[GOLDEN_FILE])}
        artifact = TrainingArtifact.of(replace(manifest, files=files), content)
        if check_runtimes(artifact, other_steps=seed != _GOLDEN_SEEDS[-1]):
            break
    return artifact if out is None else artifact.save(out)


def _further_graphs(content: Mapping[str, bytes], runtimes: Sequence[str], batch: int) -> dict[str, bytes]:
    """The graphs beside the ONNX ones, by file name."""
    unknown = sorted(set(runtimes) - {"onnx", "tflite"})
    if unknown or "onnx" not in runtimes:
        raise ArtifactError(
            f"an artifact cannot be built for {', '.join(unknown) or 'tflite alone'}",
            hint="name onnx, or onnx and tflite: the ONNX graphs are what an artifact is checked with",
        )
    if "tflite" not in runtimes:
        return {}
    least = max(rows for rows, _ in _GOLDEN_STEPS)
    if batch < least:
        raise ArtifactError(f"a batch of {batch} rows for TFLite", hint=f"{least} rows at least")
    try:
        from models.build.tflite import write_tflite
    except ImportError as error:
        raise RuntimeUnavailable(
            f"the TFLite writer cannot be imported: {error}", hint="pip install 'lichen[models]'"
        ) from None
    graphs = {Path(name).stem: octets for name, octets in content.items() if name.endswith(".onnx")}
    return {
        f"{name}.tflite": write_tflite(octets, signature=name, batch=batch) for name, octets in graphs.items()
    }


def _state(forward: Forward, optimizer: str, *, correction: bool) -> dict[str, Any]:
    """The manifest's entries of what a step reads and writes: parameters, slots, scalars."""
    chosen = OPTIMIZERS[optimizer]
    parameters = tuple(
        Parameter(
            name=name,
            shape=array.shape,
            kind="buffer" if name in forward.buffers else "weight",
            role=forward.roles[name],
        )
        for name, array in forward.parameters.items()
    )
    return {
        "optimizer": optimizer,
        "slots": chosen.all_slots,
        "hyper": hyper_of(forward, optimizer, correction=correction),
        "parameters": parameters,
    }


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


def _golden(draft: TrainingArtifact, session: Session, seed: int) -> bytes:
    bits = np.random.PCG64(seed)
    defaults = dict(draft.manifest.hyper)
    plan = [
        (
            draw_batch(draft, bits, rows),
            {key: {**_GOLDEN_DAMPING, **hyper}.get(key, default) for key, default in defaults.items()},
        )
        for rows, hyper in _GOLDEN_STEPS
    ]
    return GoldenSteps.record(draft, session, plan).to_bytes()
