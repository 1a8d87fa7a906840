"""What a fleet on this machine trains: data of the zoo, or a model and samples of one's own."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.sample_form import Array, as_stored, shaped
from fl_protocol.artifact import Input
from fl_protocol.errors import ConfigError, LayoutError
from hil.partition import BY_USER, partition
from models.runtime import Session, TrainingArtifact, split_flat
from models.zoo import digits, motion, shuttle
from models.zoo.catalogue import find
from models.zoo.mlp import digits_artifact

__all__ = [
    "DATA",
    "DEFAULT_PARTITION",
    "HELD_OUT_SHARE",
    "Samples",
    "Workload",
    "digits_workload",
    "headline",
    "own_workload",
    "read_samples",
    "zoo_workload",
]

DATA = ("digits", "motion", "shuttle")
"""Names of ``zoo_workload``; all but the first are fetched before: ``lichen models fetch``."""

DEFAULT_PARTITION = "dirichlet:1.0"
HELD_OUT_SHARE = 0.2
DIGITS_PLAN: Mapping[str, Any] = {"epochs": 6, "batch_size": 16, "lr": 0.3}
"""Six passes in batches of 16 at 0.3: what ten seeds reach with it stands in docs/benchmarks.md."""
MOTION_PLAN: Mapping[str, Any] = {"epochs": 5, "batch_size": 32, "lr": 0.02, "momentum": 0.9}
SHUTTLE_PLAN: Mapping[str, Any] = {"epochs": 1, "batch_size": 32, "lr": 0.1, "momentum": 0.9}
OWN_EPOCHS = 3
OWN_BATCH = 32
_CLASSES = "softmax_cross_entropy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Rows ``x`` [n, ...] and what belongs to them, ``y`` [n, ...]."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[np.intp]) -> "Samples":
        """The rows with these numbers."""
        return Samples(x=self.x[rows], y=self.y[rows])

    @property
    def labelled(self) -> bool:
        """Whether ``y`` is one class a row."""
        return self.y.ndim == 1 and self.y.dtype.kind in "iu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """An artifact, the samples that devices share out and those that the coordinator keeps, and defaults of
    the plan, by the names of fleet.toml's ``[plan]``; ``users`` tells whose each training sample is."""

    artifact: TrainingArtifact
    training: Samples
    held_out: Samples
    plan: Mapping[str, Any]
    users: NDArray[Any] | None = None

    def scheme(self, asked: str | None) -> str:
        """How samples are dealt out: as ``asked``, else by user or by class where there are any."""
        if not asked and self.users is not None:
            return BY_USER
        return asked or (DEFAULT_PARTITION if self.training.labelled else "iid")

    def shares(self, devices: int, *, scheme: str | None, seed: int) -> list[Samples]:
        """Deal the training samples out.

        Raises:
            ConfigError: too few, or not by class where there is none.
        """
        parts = partition(self.training.y, devices, scheme=self.scheme(scheme), seed=seed, users=self.users)
        return [self.training.take(part) for part in parts]

    def check(self, session: Session) -> None:
        """See that the model answers to the rows and knows all classes; ``session`` is of its artifact.

        Raises:
            ArtifactError: the graph cannot take the rows.
            ConfigError: a class beyond the model's outputs.
        """
        artifact = self.artifact
        weights = split_flat(artifact.initial_weights(), artifact.layout)
        output = session.infer(weights, self.held_out.x[:1])
        if artifact.manifest.loss != _CLASSES:
            return
        classes = np.concatenate([self.training.y, self.held_out.y])
        least, most = int(classes.min()), int(classes.max())
        if least < 0 or most >= output.shape[-1]:
            raise ConfigError(
                f"y holds classes from {least} to {most}, the model tells {output.shape[-1]} apart",
                hint=f"number the classes from 0 to {output.shape[-1] - 1}",
            )


def headline(metrics: Sequence[str]) -> str:
    """The figure that says how good a model is: accuracy, else its first metric, else the loss."""
    return "accuracy" if "accuracy" in metrics else metrics[0] if metrics else "loss"


def digits_workload(folder: Path, *, hidden: int, seed: int, runtimes: Sequence[str]) -> Workload:
    """The handwritten digits and their MLP, built into ``folder`` for these kinds of graphs."""
    artifact = digits_artifact(folder, hidden=hidden, seed=seed, runtimes=runtimes)
    training, held_out = digits.split(seed=seed)
    return Workload(
        artifact=artifact,
        training=Samples(x=training.x, y=training.y),
        held_out=Samples(x=held_out.x, y=held_out.y),
        plan=DIGITS_PLAN,
    )


def zoo_workload(name: str, folder: Path, *, hidden: int, seed: int, runtimes: Sequence[str]) -> Workload:
    """A data set of the zoo (see ``DATA``) and its model; ``hidden`` and ``seed`` make that of the digits.

    ``motion``: ten people, of whom two are held out, and its convolutional network. ``shuttle``: normal rows,
    and the autoencoder; the held-out rows are normal ones too, since their loss is to fall.

    Raises:
        ConfigError: the data were not fetched yet.
    """
    if name == "digits":
        return digits_workload(folder, hidden=hidden, seed=seed, runtimes=runtimes)
    if name == "motion":
        people, others = motion.split()
        return Workload(
            artifact=find("motion-cnn").open().save(folder),
            training=Samples(x=people.x, y=people.y),
            held_out=Samples(x=others.x, y=others.y),
            plan=MOTION_PLAN,
            users=people.person,
        )
    normal, evaluation = shuttle.split()
    rest = evaluation.take(~evaluation.anomaly)
    return Workload(
        artifact=find("shuttle-autoencoder").open().save(folder),
        training=Samples(x=normal.x, y=normal.x),
        held_out=Samples(x=rest.x, y=rest.x),
        plan=SHUTTLE_PLAN,
    )


def own_workload(folder: Path, source: Path, samples: Path, *, seed: int) -> Workload:
    """An artifact and an npz of ``x`` and ``y``; a fifth of the rows, drawn by ``seed``, is held out.

    Rows take the shape and dtype of the artifact's inputs. Without ``y`` each row is its own target, where
    the model's output has its shape. The artifact is copied to ``folder``.

    Raises:
        ArtifactError: no artifact, or one that cannot be trained without code of its owner's.
        ConfigError: samples that cannot be read, or are not what the artifact takes.
    """
    artifact = TrainingArtifact.open(source)
    manifest = artifact.manifest
    if "step.onnx" not in manifest.files:
        raise ConfigError(
            f"the artifact {manifest.name!r} holds weights alone, and the demo brings no trainer for it",
            hint="build it from an exported graph: lichen models build NET.onnx --loss ... --out DIR",
        )
    rows = _fitted(samples, manifest.inputs)
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out = max(1, round(HELD_OUT_SHARE * len(rows)))
    return Workload(
        artifact=artifact.save(folder),
        training=rows.take(np.sort(order[held_out:])),
        held_out=rows.take(np.sort(order[:held_out])),
        plan={"epochs": OWN_EPOCHS, "batch_size": OWN_BATCH, "lr": manifest.hyper.get("lr", 0.1)},
    )


def read_samples(path: Path) -> Samples:
    """The rows of an npz of ``x`` and ``y``, as they are.

    Raises:
        ConfigError: it cannot be read, or does not hold as many rows of both.
    """
    arrays = _read(path)
    if "y" not in arrays:
        raise ConfigError(f"{path} holds no y", hint="write it with numpy.savez(path, x=..., y=...)")
    return _paired(path, arrays["x"], arrays["y"])


def _paired(path: Path, x: Array, y: Array) -> Samples:
    if not x.ndim or not y.ndim or len(x) != len(y):
        raise ConfigError(f"{path}: x is {list(x.shape)} and y {list(y.shape)}, not as many rows of each")
    return Samples(x=x, y=y)


def _fitted(path: Path, inputs: Sequence[Input]) -> Samples:
    arrays = _read(path)
    wanted = {entry.name: entry for entry in inputs}
    x, y = arrays["x"], arrays.get("y")
    if y is None:
        x_shape, y_shape = (wanted[name].shape if name in wanted else () for name in ("x", "y"))
        if not x_shape or x_shape != y_shape:
            raise ConfigError(
                f"{path} holds no y, and the model's output is not of the shape of x",
                hint="write it with numpy.savez(path, x=..., y=...)",
            )
        y = x
    rows = _paired(path, x, y)
    return Samples(x=_rows(path, "x", rows.x, wanted.get("x")), y=_rows(path, "y", rows.y, wanted.get("y")))


def _read(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as archive:
            arrays = {name: as_stored(archive[name]) for name in ("x", "y") if name in archive}
    except LayoutError as error:
        raise ConfigError(f"{path}: {error.args[0]}", hint=error.hint) from None
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        arrays, reason = {}, f": {error}"
    else:
        reason = " holds no x"
    if "x" not in arrays:
        raise ConfigError(f"{path}{reason}", hint="write it with numpy.savez(path, x=..., y=...)")
    return arrays


def _rows(path: Path, name: str, rows: Array, wanted: Input | None) -> Array:
    """Rows in the shape and dtype of a graph's input; a row may be flat, or a number in a list of one."""
    if wanted is None:
        return rows
    shape = wanted.shape[1:]
    fitting = shaped(rows, shape) if -1 not in shape or len(shape) == rows.ndim - 1 else None
    if fitting is None:
        raise ConfigError(
            f"{path}: rows of {name} have the shape {list(rows.shape[1:])}, the model takes {list(shape)}",
            hint="give samples of that shape, axes in that order, or build the artifact for these",
        )
    if np.dtype(wanted.dtype).kind == "i" and rows.dtype.kind == "f":
        raise ConfigError(
            f"{path}: {name} holds {rows.dtype}, the model takes {wanted.dtype}",
            hint="number the classes from 0" if name == "y" else "convert it before it is saved",
        )
    return fitting.astype(wanted.dtype)
