"""``lichen models``: look at a model, build a training artifact of it, verify one, wrap bare weights."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_protocol.errors import ArtifactError
from models.build.roles import BATCH_NORM
from models.runtime.artifact import TrainingArtifact
from models.runtime.choose import RuntimeTrial, runtimes_for, try_runtime

if TYPE_CHECKING:
    from models.build.inspection import Inspection

__all__ = ["models"]

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
_TIMED_STEPS = 100


@click.group(context_settings=HELP_OPTIONS)
def models() -> None:
    """Training artifacts: inspect a forward ONNX graph, build an artifact from it, verify one."""


_FREEZE = [
    click.option(
        "--parameters",
        multiple=True,
        metavar="PATTERN",
        help="Initializers that are parameters (all float32).",
    ),
    click.option("--train", multiple=True, metavar="PATTERN", help="Parameters to train; others are frozen."),
    click.option(
        "--personal", multiple=True, metavar="PATTERN", help="Parameters trained that stay on the device."
    ),
    click.option(
        "--batch-norm",
        type=click.Choice(BATCH_NORM),
        help="Running statistics: each device's own (local, the default), averaged, or frozen.",
    ),
]


def _choices(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what is trained."""
    for option in reversed(_FREEZE):
        command = option(command)
    return command


@models.command(context_settings=HELP_OPTIONS)
@click.argument("network", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="NET.onnx")
@click.option("--loss", required=True, help="softmax_cross_entropy, sigmoid_cross_entropy, mse or huber.")
@click.option("--optimizer", default="sgd", show_default=True, help="sgd (with momentum), nesterov or adamw.")
@click.option("--metric", "metrics", multiple=True, help="accuracy, top2 to top10, mae; the loss's own.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write."
)
@click.option("--name", help="The artifact's name; the file's, where not given.")
@_choices
@click.option(
    "--correction", is_flag=True, help="Let the step add a tensor to each weight's gradient (SCAFFOLD)."
)
@click.option("--expect-params", type=click.IntRange(min=1), help="How many parameters the model has.")
@click.option(
    "--runtimes",
    default="onnx",
    show_default=True,
    metavar="LIST",
    help="Graphs to write: onnx, or onnx,tflite.",
)
@click.option(
    "--batch",
    default=32,
    show_default=True,
    type=click.IntRange(min=8),
    help="Rows that a TFLite graph takes at most.",
)
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
    train: Sequence[str],
    personal: Sequence[str],
    batch_norm: str | None,
    correction: bool,
    expect_params: int | None,
    runtimes: str,
    batch: int,
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
        metrics=metrics or None,
        out=out,
        name=name,
        parameters=parameters or None,
        train=train or None,
        personal=personal or None,
        batch_norm=batch_norm,
        correction=correction,
        expect_params=expect_params,
        runtimes=[runtime.strip() for runtime in runtimes.split(",")],
        batch=batch,
    )
    _show(artifact, _trials(artifact), as_json=as_json, confirmed=expect_params is not None)


@models.command(context_settings=HELP_OPTIONS)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(folder: Path, as_json: bool) -> None:
    """Verify the artifact in DIR: every file's hash, and the golden steps on every runtime here."""
    artifact = TrainingArtifact.open(folder)
    artifact.initial_weights()
    trials = _trials(artifact)
    _show(artifact, trials, as_json=as_json, confirmed=True)
    failed = [trial.runtime for trial in trials if trial.failed]
    if failed:
        raise ArtifactError(f"the artifact fails on {', '.join(failed)}", hint="it must not be trained there")


@models.command(context_settings=HELP_OPTIONS)
@click.argument("network", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="NET.onnx")
@_choices
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(
    *,
    network: Path,
    parameters: Sequence[str],
    train: Sequence[str],
    personal: Sequence[str],
    batch_norm: str | None,
    as_json: bool,
) -> None:
    """Show what a build would make of NET.onnx: parameters, operators, and what stands in the way."""
    from models.build import inspect_model

    found = inspect_model(
        network,
        parameters=parameters or None,
        train=train or None,
        personal=personal or None,
        batch_norm=batch_norm,
    )
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        _show_inspection(found)
    if found.obstacles:
        raise ArtifactError(
            f"{network} cannot be trained as it is: {found.obstacles[0].reason}", hint=found.obstacles[0].hint
        )


@models.command(context_settings=HELP_OPTIONS)
@click.argument(
    "weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="WEIGHTS.npz"
)
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write."
)
@click.option("--name", help="The artifact's name; the file's, where not given.")
@click.option(
    "--buffers", multiple=True, metavar="PATTERN", help="Arrays that are running statistics, not weights."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def wrap(weights: Path, out: Path, name: str | None, buffers: Sequence[str], as_json: bool) -> None:
    """Make an artifact of the arrays in WEIGHTS.npz alone, for a trainer of your own code."""
    from models.build import wrap_weights

    _show(wrap_weights(weights, out=out, name=name, buffers=buffers), [], as_json=as_json, confirmed=True)


def _trials(artifact: TrainingArtifact) -> list[RuntimeTrial]:
    return [try_runtime(name, artifact, timed_steps=_TIMED_STEPS) for name in runtimes_for(artifact)]


def _show(
    artifact: TrainingArtifact, trials: Sequence[RuntimeTrial], *, as_json: bool, confirmed: bool
) -> None:
    if as_json:
        click.echo(json.dumps(_report(artifact, trials)))
        return
    console = Console()
    manifest = artifact.manifest
    console.print(
        f"{manifest.name}: {_counted(artifact)}, "
        f"{manifest.loss or 'for a trainer of your own'}, {manifest.optimizer or 'no graphs'}, "
        f"sha256 {artifact.digest.hex()[:16]}, in {artifact.path}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    tensors = Table("parameter", "shape", "size", "role")
    for entry in manifest.parameters:
        role = entry.role if entry.kind == "weight" else f"{entry.role} {entry.kind}"
        tensors.add_row(escape(entry.name), _spelt(entry.shape), f"{math.prod(entry.shape):,}", role)
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
    if trials:
        console.print(runtimes)
    if not confirmed:
        console.print("Are these all the parameters that you expect? --expect-params checks it for you.")


def _counted(artifact: TrainingArtifact) -> str:
    """How many parameters there are, and how many of them an update holds where it is not all."""
    weights = [entry for entry in artifact.manifest.parameters if entry.kind == "weight"]
    count, travelling = sum(math.prod(entry.shape) for entry in weights), artifact.layout.weight_size
    return f"{count:,} parameters" + ("" if travelling == count else f", {travelling:,} of them in an update")


def _show_inspection(found: "Inspection") -> None:
    console = Console()
    tensors = Table("parameter", "shape", "size", "role")
    for name, shape, role in found.parameters:
        tensors.add_row(escape(name), _spelt(shape), f"{math.prod(shape):,}", role)
    console.print(tensors)
    operators = Table("operator", "times", "gradient")
    for use in found.operators:
        operators.add_row(use.op, str(use.count), use.support)
    console.print(operators)
    if not found.obstacles:
        console.print(f"operator set {found.opset}, output {_spelt(found.output)}: nothing stands in the way")
    for obstacle in found.obstacles:
        console.print(f"{obstacle.reason}\n  {obstacle.hint}", markup=False, highlight=False, soft_wrap=True)


def _spelt(shape: Sequence[object]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


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
        "parameters": artifact.layout.weight_size,
        "layout_fingerprint": artifact.layout.fingerprint.hex(),
        "tensors": {tensor.name: list(tensor.shape) for tensor in artifact.layout.tensors},
        "roles": {entry.name: [entry.kind, entry.role] for entry in manifest.parameters},
        "frozen": {entry.name: list(entry.shape) for entry in manifest.parameters if entry.role == "frozen"},
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
