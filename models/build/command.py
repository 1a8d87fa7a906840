"""``lichen models``: build a training artifact, verify one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_protocol.errors import ArtifactError
from models.runtime.artifact import TrainingArtifact
from models.runtime.choose import RUNTIMES, RuntimeTrial, try_runtime

__all__ = ["models"]

_TIMED_STEPS = 100


@click.group()
def models() -> None:
    """Training artifacts: build one from a forward ONNX graph, verify one."""


@models.command()
@click.argument("network", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="NET.onnx")
@click.option("--loss", required=True, help="softmax_cross_entropy.")
@click.option("--optimizer", default="sgd", show_default=True, help="sgd (with momentum).")
@click.option("--metric", "metrics", multiple=True, default=["accuracy"], show_default=True)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write."
)
@click.option("--name", help="The artifact's name; the file's, where not given.")
@click.option(
    "--parameters",
    multiple=True,
    metavar="PATTERN",
    help="Initializers to train (all float32).",
)
@click.option("--expect-params", type=click.IntRange(min=1), help="How many parameters the model has.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(
    *,
    network: Path,
    loss: str,
    optimizer: str,
    metrics: Sequence[str],
    out: Path,
    name: str | None,
    parameters: Sequence[str],
    expect_params: int | None,
    as_json: bool,
) -> None:
    """Build a training artifact from the forward graph NET.onnx.

    Checks the gradients on this very model and runs golden steps on every runtime that is installed
    here; nothing is written if one of them is wrong.
    """
    from models.build import build_artifact

    artifact = build_artifact(
        network,
        loss=loss,
        optimizer=optimizer,
        metrics=metrics,
        out=out,
        name=name,
        parameters=parameters or None,
        expect_params=expect_params,
    )
    _show(artifact, _trials(artifact), as_json=as_json, confirmed=expect_params is not None)


@models.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(folder: Path, as_json: bool) -> None:
    """Verify the artifact in DIR: every file's hash, and the golden steps on every runtime here."""
    artifact = TrainingArtifact.open(folder)
    artifact.initial_weights()
    trials = _trials(artifact)
    _show(artifact, trials, as_json=as_json, confirmed=True)
    failed = [trial.runtime for trial in trials if trial.installed and trial.reason]
    if failed:
        raise ArtifactError(f"the artifact fails on {', '.join(failed)}", hint="it must not be trained there")


def _trials(artifact: TrainingArtifact) -> list[RuntimeTrial]:
    return [try_runtime(name, artifact, timed_steps=_TIMED_STEPS) for name in RUNTIMES]


def _show(
    artifact: TrainingArtifact, trials: Sequence[RuntimeTrial], *, as_json: bool, confirmed: bool
) -> None:
    if as_json:
        click.echo(json.dumps(_report(artifact, trials)))
        return
    console = Console()
    manifest = artifact.manifest
    console.print(
        f"{manifest.name}: {artifact.layout.size:,} parameters, {manifest.loss}, {manifest.optimizer}, "
        f"sha256 {artifact.digest.hex()[:16]}, in {artifact.path}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    tensors = Table("parameter", "shape", "size")
    for tensor in artifact.layout.tensors:
        tensors.add_row(
            escape(tensor.name), " x ".join(map(str, tensor.shape)) or "scalar", f"{tensor.size:,}"
        )
    console.print(tensors)
    files = Table("file", "bytes")
    for name, ref in sorted(manifest.files.items()):
        files.add_row(name, f"{ref.size:,}")
    console.print(files)
    runtimes = Table("runtime", "deviation", "ms/step", "verdict")
    for trial in trials:
        runtimes.add_row(
            trial.runtime,
            f"{trial.deviation:.1e}" if trial.deviation is not None else "",
            f"{trial.step_ms:.2f}" if trial.step_ms is not None else "",
            escape(_verdict(trial)),
        )
    console.print(runtimes)
    if not confirmed:
        console.print("Are these all the parameters that you expect? --expect-params checks it for you.")


def _verdict(trial: RuntimeTrial) -> str:
    if not trial.installed:
        return "not installed here"
    return trial.reason or "reproduces the golden steps"


def _report(artifact: TrainingArtifact, trials: Sequence[RuntimeTrial]) -> Mapping[str, Any]:
    manifest = artifact.manifest
    return {
        "name": manifest.name,
        "path": str(artifact.path),
        "sha256": artifact.digest.hex(),
        "loss": manifest.loss,
        "metrics": list(manifest.metrics),
        "optimizer": manifest.optimizer,
        "parameters": artifact.layout.size,
        "layout_fingerprint": artifact.layout.fingerprint.hex(),
        "tensors": {tensor.name: list(tensor.shape) for tensor in artifact.layout.tensors},
        "files": {name: ref.size for name, ref in sorted(manifest.files.items())},
        "runtimes": [
            {
                "runtime": trial.runtime,
                "installed": trial.installed,
                "deviation": trial.deviation,
                "step_ms": trial.step_ms,
                "reason": trial.reason,
            }
            for trial in trials
        ],
    }
