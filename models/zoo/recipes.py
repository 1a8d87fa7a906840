"""Recipes: how each model of the zoo is built, from nothing but this code, to the same bytes everywhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import onnx

from models.build import build_artifact
from models.runtime.artifact import TrainingArtifact
from models.zoo import motion
from models.zoo.mlp import mlp
from models.zoo.networks import (
    anomaly_autoencoder,
    digits_cnn,
    keyword_ds_cnn,
    motion_cnn,
    motion_gru,
    shuttle_autoencoder,
)

__all__ = ["RECIPES", "Recipe", "build"]

RUNTIMES = ("onnx", "tflite")

_DIGITS = tuple(str(digit) for digit in range(10))
# The twelve classes of the Speech Commands benchmark (Warden, 2018).
_WORDS = ("silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The forward graph, and what ``build_artifact`` is told of it; ``parameters`` is their number."""

    forward: Callable[[], onnx.ModelProto]
    parameters: int
    loss: str = "softmax_cross_entropy"
    class_names: tuple[str, ...] = ()
    normalisation: Mapping[str, float] = field(default_factory=dict)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "anomaly-autoencoder": Recipe(forward=anomaly_autoencoder, parameters=1783, loss="mse"),
        "digits-cnn": Recipe(
            forward=digits_cnn, parameters=6138, class_names=_DIGITS, normalisation={"scale": 1 / 16}
        ),
        "digits-mlp": Recipe(
            forward=lambda: mlp((64, 32, 10), name="digits-mlp"),
            parameters=2410,
            class_names=_DIGITS,
            normalisation={"scale": 1 / 16},
        ),
        "keyword-ds-cnn": Recipe(forward=keyword_ds_cnn, parameters=23180, class_names=_WORDS),
        "keyword-ds-cnn-bn": Recipe(
            forward=lambda: keyword_ds_cnn(norm="batch"), parameters=23180, class_names=_WORDS
        ),
        "motion-cnn": Recipe(forward=motion_cnn, parameters=8551, class_names=motion.CLASSES),
        "motion-gru": Recipe(forward=motion_gru, parameters=4175, class_names=motion.CLASSES),
        "shuttle-autoencoder": Recipe(forward=shuttle_autoencoder, parameters=461, loss="mse"),
    }
)
"""By the names of the catalogue."""


def build(name: str, out: Path | str | None = None) -> TrainingArtifact:
    """Build one model of the zoo; with ``out`` it is written to that folder.

    Raises:
        ArtifactError: a gate found the result wrong.
        StorageError: the folder cannot be written.
    """
    recipe = RECIPES[name]
    return build_artifact(
        recipe.forward(),
        loss=recipe.loss,
        out=out,
        name=name,
        runtimes=RUNTIMES,
        expect_params=recipe.parameters,
        class_names=recipe.class_names,
        normalisation=recipe.normalisation,
    )
