"""Personal parameters, running statistics and dropout, through a real artifact in the runtimes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.checkpoint import read_checkpoint
from edge_agent.graph_trainer import dropout_seed
from edge_agent.job_runner import JobRunner
from edge_agent.jobs import JobFailed, Trained
from edge_agent.personal import personal_shapes
from edge_agent.samples import SampleStore
from edge_agent.tensor_record import pack_record, unpack_record
from fl_io.clock import SystemClock
from fl_protocol.codec import decode_model, encode_model
from fl_protocol.plan import TrainingPlan
from models.build import build_artifact
from models.runtime import Batch, TrainingArtifact, split_flat
from models.runtime.numpy_runtime import NumpyRuntime

PLAN = TrainingPlan(epochs=3, batch_size=16, lr=0.1, momentum=0.9)
PERSONAL = {"head.w", "head.b", "mean", "var"}


def forward():
    """64 -> 16, BatchNorm, ReLU, dropout, a head of 10."""
    draw = np.random.default_rng(3)
    nodes = [
        helper.make_node("Gemm", ["x", "body.w", "body.b"], ["h"], transB=1),
        helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["n"], momentum=0.9),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Dropout", ["r", "ratio", "on"], ["d"]),
        helper.make_node("Gemm", ["d", "head.w", "head.b"], ["y"], transB=1),
    ]
    tensors = {
        "body.w": draw.normal(size=(16, 64)) / 8,
        "body.b": np.zeros(16),
        "scale": np.ones(16),
        "shift": np.zeros(16),
        "mean": np.zeros(16),
        "var": np.ones(16),
        "head.w": draw.normal(size=(10, 16)) / 4,
        "head.b": np.zeros(10),
    }
    constants = [
        numpy_helper.from_array(np.float32(0.25), "ratio"),
        numpy_helper.from_array(np.array(True), "on"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()]
        + constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> TrainingArtifact:
    """With a head and running statistics of each device's own."""
    out = tmp_path_factory.mktemp("artifact") / "personal"
    return build_artifact(forward(), loss="softmax_cross_entropy", personal=["head.*"], out=out)


@pytest.fixture(scope="module")
def weights_file(artifact, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights"
    path.write_bytes(encode_model(artifact.initial_weights(), artifact.layout))
    return path


@pytest.fixture(params=["numpy", "onnx"])
def job(request, train_job):
    return train_job(plan=PLAN, codec="float32", runtimes=(request.param,))


def run(job, stop=lambda: False):
    return JobRunner(clock=SystemClock()).run(job, lambda progress: None, stop)


def loss_of_published(artifact, job, personal):
    """The published version's loss on the held-out samples, with these personal tensors."""
    published = decode_model(Path(job.weights_path).read_bytes(), artifact.layout)
    weights = {**split_flat(published, artifact.layout), **personal}
    with SampleStore(job.samples_path) as store:
        x, y = store.held_out().all()
    return NumpyRuntime().open(artifact).evaluate(weights, Batch.of(x, y))["loss"]


def test_what_is_personal_is_trained_and_stays_here(artifact, job):
    """The payload has the shared tensors alone; the state has the others, and they moved."""
    assert personal_shapes(artifact).keys() == PERSONAL
    trained = run(job)
    assert isinstance(trained, Trained), trained
    assert len(trained.payload) == 4 * artifact.layout.size == 4 * (16 * 64 + 3 * 16)
    _, state = unpack_record(trained.device_state, "the state")
    assert state.keys() == PERSONAL
    initial = artifact.frozen_weights()
    assert all(not np.array_equal(state[name], initial[name]) for name in PERSONAL)
    assert trained.metrics["after.loss"] < trained.metrics["before.loss"]


def test_the_next_training_goes_on_with_the_devices_own(artifact, job, version):
    """And evaluates the published version with them, before it trains."""
    first = run(job)
    second = run(replace(job, base=version(2), device_state=first.device_state))
    fresh = run(replace(job, base=version(2)))
    _, own = unpack_record(first.device_state, "the state")
    for trained, personal in [(second, own), (fresh, artifact.frozen_weights())]:
        expected = loss_of_published(artifact, job, personal)
        assert trained.metrics["before.loss"] == pytest.approx(expected, rel=1e-4)
    assert second.metrics["before.loss"] != fresh.metrics["before.loss"]
    assert second.device_state != fresh.device_state


def test_a_state_of_another_model_is_left_aside(artifact, job):
    """Other names, or damage that the supervisor could not see."""
    fresh = run(job)
    other = pack_record({}, {"tail": np.zeros(3, np.float32)})
    assert run(replace(job, device_state=other)).payload == fresh.payload
    assert run(replace(job, device_state=b"nonsense")).payload == fresh.payload


def test_a_training_that_goes_on_gives_the_same_bits(job, tmp_path):
    """Statistics and personal tensors are in the checkpoint; each step's dropout is its own."""
    path = tmp_path / "checkpoint"
    whole = run(job)
    asked = iter(range(1000))
    stopped = replace(job, checkpoint_path=str(path), checkpoint_every_s=0.0)
    assert run(stopped, lambda: next(asked) >= 17) == JobFailed(reason="cancelled", retryable=True)
    assert 0 < read_checkpoint(Path(path)).steps < whole.steps_planned
    went_on = run(stopped)
    assert went_on.payload == whole.payload
    assert went_on.device_state == whole.device_state
    assert went_on.metrics == whole.metrics


def test_the_seeds_of_dropout_are_whole_numbers_that_float32_holds():
    """Frozen; another training or step draws another."""
    seeds = {dropout_seed(training, step) for training in range(20) for step in range(50)}
    assert len(seeds) > 990
    assert all(0 <= seed < 1 << 22 for seed in seeds)
    assert dropout_seed(490221688, 7) == 3220041
