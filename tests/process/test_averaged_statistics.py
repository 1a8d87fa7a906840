"""A CNN whose BatchNorm statistics are averaged over the fleet: real agents, coordinator and broker."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from broker_coordinator.books.audit import audit
from broker_coordinator.books.export import export_version
from broker_coordinator.evaluation import HeldOut
from broker_coordinator.storage.sqlite_store import SqliteStore
from hil.local_fleet import FleetOptions, LocalFleet
from models.build import build_artifact
from models.runtime import TrainingArtifact, join_flat, split_flat
from models.zoo import digits

pytestmark = pytest.mark.process

PATIENCE_S = 90.0
CHANNELS = 8


def network() -> ModelProto:
    """Convolution, BatchNorm and one linear layer; the statistics are those of quite other pictures."""
    draw = np.random.default_rng(3)
    tensors = {
        "conv.weight": draw.standard_normal((CHANNELS, 1, 3, 3)) / 3,
        "norm.weight": np.ones(CHANNELS),
        "norm.bias": np.zeros(CHANNELS),
        "norm.mean": np.full(CHANNELS, 40),
        "norm.var": np.full(CHANNELS, 400),
        "out.weight": draw.standard_normal((10, CHANNELS * 16)) / (CHANNELS * 16) ** 0.5,
        "out.bias": np.zeros(10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["c", "norm.weight", "norm.bias", "norm.mean", "norm.var"], ["n"]
        ),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "out.weight", "out.bias"], ["z"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    """Four agents with pixels that are nowhere near mean 0 and variance 1."""
    build_artifact(
        network(),
        loss="softmax_cross_entropy",
        metrics=["accuracy"],
        batch_norm="averaged",
        name="statistics",
        out=tmp_path / "artifact",
    )
    rows = digits.load()
    np.savez(tmp_path / "samples.npz", x=20 * rows.x.reshape(-1, 1, 8, 8) + 5, y=rows.y)
    options = FleetOptions(
        devices=4,
        partition="iid",
        versions=10,
        artifact=tmp_path / "artifact",
        samples=tmp_path / "samples.npz",
        batch_size=16,
        lr=0.1,
        epochs=3,
    )
    fleet = LocalFleet(tmp_path / "fleet", options)
    try:
        fleet.prepare()
        yield fleet
    finally:
        fleet.stop()


def test_averaged_statistics_make_the_model_that_was_trained(fleet, tmp_path):
    """The published model is good with them, useless with those it began with; every version replays."""
    fleet.start()
    assert fleet.coordinator.wait(PATIENCE_S) == 0, fleet.coordinator.last_words()
    artifact = TrainingArtifact.open(fleet.folder / "artifact")
    layout, store = artifact.layout, SqliteStore.open(fleet.state, read_only=True)
    try:
        newest = store.newest_version()
        exported = export_version(store, fleet.state, tmp_path / "out.npz", published=True)
    finally:
        store.close()
    with np.load(exported.path) as arrays:
        weights = {name: arrays[name] for name in arrays.files}
    initial = split_flat(artifact.initial_weights(), layout)
    statistics = {name: initial[name] for name in ("norm.mean", "norm.var")}
    held_out = HeldOut(artifact, fleet.folder / "held_out.npz")
    averaged = held_out.evaluate(join_flat(weights, layout)).accuracy
    without = held_out.evaluate(join_flat({**weights, **statistics}, layout)).accuracy
    assert weights["norm.var"].min() > 0
    assert newest.metrics["accuracy"] == pytest.approx(averaged)
    assert averaged > max(0.6, without + 0.3)
    report = audit(fleet.state, fleet.agent_states)
    assert report.balanced, report.faults
    assert (report.versions_checked, report.folded) == (newest.number, 2 * newest.number)
