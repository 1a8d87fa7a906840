"""A digits artifact, a store with real digits, and the job that trains on them."""

import itertools
from dataclasses import replace

import pytest

from edge_agent.jobs import TrainJob
from edge_agent.samples import SampleStore
from fl_protocol.codec import encode_model
from fl_protocol.plan import TrainingPlan
from fl_protocol.version import VersionId
from models.runtime import TrainingArtifact
from models.zoo import digits
from models.zoo.mlp import digits_artifact


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> TrainingArtifact:
    """The 64-32-10 MLP, built once."""
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits")


@pytest.fixture(scope="session")
def digit_store(tmp_path_factory):
    """The path of a store with 200 digits."""
    path = tmp_path_factory.mktemp("samples") / "samples.db"
    images = digits.load()
    with SampleStore(path) as store:
        store.extend(images.x[:200], images.y[:200])
    return path


@pytest.fixture(scope="session")
def weights_file(artifact, tmp_path_factory):
    """The artifact's initial weights as a coordinator would publish them."""
    path = tmp_path_factory.mktemp("weights") / "weights"
    path.write_bytes(encode_model(artifact.initial_weights(), artifact.layout))
    return path


@pytest.fixture
def version():
    """Make the identity of version ``number``."""
    return lambda number=1: VersionId(epoch=1, number=number, digest=bytes([number % 256]) * 16)


@pytest.fixture
def train_job(artifact, digit_store, weights_file, version):
    """Make a ``TrainJob``; arguments change its fields. Every one has an update id of its own."""
    ids = itertools.count(1)

    def make(**changes) -> TrainJob:
        job = TrainJob(
            update_id=next(ids).to_bytes(16, "big"),
            device_seed=b"seed" * 8,
            artifact_dir=str(artifact.path),
            weights_path=str(weights_file),
            samples_path=str(digit_store),
            plan=TrainingPlan(epochs=2, batch_size=16, lr=0.2),
            base=version(),
            codec="eden(bits=1)",
            fingerprint=artifact.layout.fingerprint,
            max_examples=1000,
            runtimes=("numpy",),
        )
        return replace(job, **changes)

    return make
