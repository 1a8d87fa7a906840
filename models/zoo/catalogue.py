"""The catalogue: which models the zoo holds, and where their artifacts lie.

Needs only what a device has: nothing here builds a model.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ArtifactError
from models.runtime.artifact import TrainingArtifact

__all__ = ["CATALOGUE", "ZooModel", "find"]

ZOO = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooModel:
    """One model: ``variant`` is the network, ``summary`` what it does in a few words."""

    task: str
    variant: str
    summary: str

    @property
    def name(self) -> str:
        """What a person types: ``digits-cnn``."""
        return f"{self.task}-{self.variant}"

    @property
    def place(self) -> str:
        """Where the artifact lies within the zoo: ``digits/cnn``; the task's README.md is beside it."""
        return f"{self.task}/{self.variant}"

    def open(self) -> TrainingArtifact:
        """The artifact, every file checked.

        Raises:
            ArtifactError: a file is missing or is not the one that was built.
        """
        return TrainingArtifact.open(ZOO / self.place)


CATALOGUE = (
    ZooModel(task="anomaly", variant="autoencoder", summary="windows of three vibration axes, rebuilt"),
    ZooModel(task="digits", variant="cnn", summary="handwritten digits of 8x8 pixels"),
    ZooModel(task="digits", variant="mlp", summary="handwritten digits of 8x8 pixels"),
    ZooModel(task="keyword", variant="ds-cnn", summary="twelve spoken words, from log-mel frames"),
    ZooModel(task="keyword", variant="ds-cnn-bn", summary="twelve spoken words, from log-mel frames"),
    ZooModel(task="motion", variant="cnn", summary="seven exercises, from a watch on the wrist"),
    ZooModel(task="motion", variant="gru", summary="seven exercises, from a watch on the wrist"),
    ZooModel(task="shuttle", variant="autoencoder", summary="rows of nine sensors, rebuilt"),
)
"""Every model, by name."""


def find(name: str) -> ZooModel:
    """The model of a name.

    Raises:
        ArtifactError: there is none; the hint says which there are.
    """
    names = [model.name for model in CATALOGUE]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise ArtifactError(
            f"the zoo has no model {name!r}",
            hint=f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}",
        )
    return CATALOGUE[names.index(name)]
