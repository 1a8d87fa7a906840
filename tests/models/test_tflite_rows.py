"""How many rows .tflite graphs take, told without an interpreter."""

import random
from dataclasses import replace

import pytest

from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError
from models.build import build_artifact
from models.runtime import TrainingArtifact, fixed_rows
from models.zoo.catalogue import CATALOGUE
from models.zoo.mlp import mlp


@pytest.fixture(scope="module")
def of_24():
    """A small model, built for batches of 24 rows."""
    return build_artifact(mlp((6, 5, 3)), loss="softmax_cross_entropy", runtimes=("onnx", "tflite"), batch=24)


def test_the_rows_are_those_of_the_build(of_24, digits_folder):
    """And nothing for an artifact that runs elsewhere."""
    assert fixed_rows(of_24) == 24
    assert fixed_rows(TrainingArtifact.open(digits_folder)) is None


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_the_zoo_takes_32(model):
    """Every kind of graph is read, images and windows alike."""
    assert fixed_rows(model.open()) == 32


def test_no_file_breaks_the_reader(of_24):
    """Cut off or changed anywhere: a number or an error of ours."""
    draw = random.Random(3)
    octets = {name: of_24.read(name) for name in of_24.manifest.files}
    content = octets["step.tflite"]
    for _ in range(300):
        spoilt = bytearray(content[: draw.choice((len(content), draw.randrange(len(content))))])
        for _ in range(draw.randrange(8) if spoilt else 0):
            spoilt[draw.randrange(min(len(spoilt), 4096))] = draw.randrange(256)
        files = {**of_24.manifest.files, "step.tflite": BlobRef.of(bytes(spoilt))}
        manifest = replace(of_24.manifest, files=files)
        try:
            rows = fixed_rows(TrainingArtifact.of(manifest, {**octets, "step.tflite": bytes(spoilt)}))
        except ArtifactError:
            continue
        assert rows > 0
