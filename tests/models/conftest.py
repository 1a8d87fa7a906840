"""Artifacts that several tests of the models look at; built once."""

import numpy as np
import pytest

from models.build import build_artifact
from models.runtime import Batch
from models.zoo.mlp import digits_artifact, mlp

PACKAGES = {"onnx": "onnxruntime", "litert": "ai_edge_litert", "tflite": "tflite_runtime"}
"""The package that each runtime needs beside NumPy."""


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """The folder of the digits artifact; do not change it."""
    return digits_artifact(tmp_path_factory.mktemp("digits")).path


@pytest.fixture(scope="session")
def digits_for_all(tmp_path_factory):
    """The folder of the digits artifact with graphs for every runtime; do not change it."""
    return digits_artifact(tmp_path_factory.mktemp("digits"), runtimes=("onnx", "tflite")).path


@pytest.fixture(scope="session")
def small_artifact():
    """A 5-7-3 MLP, in memory, with graphs for every runtime."""
    network = mlp((5, 7, 3), seed=4, name="small")
    return build_artifact(network, loss="softmax_cross_entropy", runtimes=("onnx", "tflite"))


@pytest.fixture
def installed():
    """Skips a test whose runtime is not installed here: ``installed(name)``."""

    def check(name):
        if name in PACKAGES:
            pytest.importorskip(PACKAGES[name])

    return check


@pytest.fixture
def small_batch():
    """Six rows for the small MLP, all of weight 1."""
    draw = np.random.default_rng(8)
    return Batch.of(draw.standard_normal((6, 5)).astype(np.float32), draw.integers(0, 3, 6).astype(np.int32))
