"""In which order a trainer is handed tensors: the artifact's, in which statistics stand among the layers."""

import sys

import numpy as np
import pytest

from edge_agent.job_runner import JobRunner
from edge_agent.jobs import Trained
from fl_io.clock import SystemClock
from fl_protocol.codec import codec_for, codec_seed, decode, encode_model
from models.build import wrap_weights
from models.runtime import split_flat

LAYERS = ("norm1.weight", "norm1.running_mean", "norm2.weight", "norm2.running_mean")
APP = """
import lichen

class Client:
    def fit(self, parameters, config):
        assert [array[0] for array in parameters] == [0, 1, 2, 3], "these are not my layers"
        return [array + 10 * (place + 1) for place, array in enumerate(parameters)], 5, {}

    def evaluate(self, parameters, config):
        return 0.0, 0, {}

class Layered(lichen.FlowerTrainer):
    brings_samples = True

    def client(self, samples):
        return Client()
"""


@pytest.fixture
def layered(tmp_path):
    """Two normalisations of one width: what is swapped among them fits just as well."""
    weights = {name: np.full(4, place, np.float32) for place, name in enumerate(LAYERS)}
    return wrap_weights(weights, buffers=["*running_*"], out=tmp_path / "layers")


def test_a_flower_client_is_given_its_layers_in_its_own_order(layered, train_job, tmp_path, monkeypatch):
    """Not in the wire's, where statistics come last: each gets back what the client made of it."""
    (tmp_path / "layered_app.py").write_text(APP)
    (tmp_path / "published").write_bytes(encode_model(layered.initial_weights(), layered.layout))
    monkeypatch.setattr(sys, "path", [*sys.path])
    job = train_job(
        artifact_dir=str(layered.path),
        weights_path=str(tmp_path / "published"),
        samples_path=str(tmp_path / "none.db"),
        fingerprint=layered.layout.fingerprint,
        codec="float32",
        trainer="layered_app:Layered",
        trainer_path=str(tmp_path),
    )
    trained = JobRunner(clock=SystemClock()).run(job, lambda progress: None, lambda: False)
    assert isinstance(trained, Trained), trained
    delta = decode(codec_for("float32"), trained.payload, layered.layout, codec_seed(job.update_id))
    moved = {name: float(tensor[0]) for name, tensor in split_flat(delta, layered.layout).items()}
    assert moved == {name: 10 * (place + 1) for place, name in enumerate(LAYERS)}
