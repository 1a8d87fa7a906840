"""Artifacts that several tests of the models look at; built once."""

import numpy as np
import pytest

from models.build import build_artifact
from models.runtime import Batch
from models.zoo.mlp import digits_artifact, mlp


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """The folder of the digits artifact; do not change it."""
    return digits_artifact(tmp_path_factory.mktemp("digits")).path


@pytest.fixture(scope="session")
def small_artifact():
    """A 5-7-3 MLP, in memory."""
    return build_artifact(mlp((5, 7, 3), seed=4, name="small"), loss="softmax_cross_entropy")


@pytest.fixture
def small_batch():
    """Six rows for the small MLP, all of weight 1."""
    draw = np.random.default_rng(8)
    return Batch.of(draw.standard_normal((6, 5)).astype(np.float32), draw.integers(0, 3, 6).astype(np.int32))
