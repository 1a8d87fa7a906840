"""The whole build: what it writes, that it is reproducible, that it trains."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from models.build import build_artifact
from models.runtime import RUNTIMES, Batch, TrainingArtifact, open_session, split_flat, zero_slots
from models.zoo import digits
from models.zoo.mlp import digits_artifact, mlp


def test_building_twice_gives_equal_bytes(digits_folder, tmp_path):
    """Another process, another hash seed, another thread count: the same files."""
    script = f"from models.zoo.mlp import digits_artifact; digits_artifact({str(tmp_path / 'again')!r})"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env={"PYTHONHASHSEED": "7"})
    names = sorted(file.name for file in digits_folder.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "again").iterdir())
    for name in names:
        assert (digits_folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_manifest_says_what_was_built(digits_folder):
    """Loss, optimizer, scalars with defaults, inputs, parameters in wire order."""
    manifest = TrainingArtifact.open(digits_folder).manifest
    assert (manifest.name, manifest.loss, manifest.optimizer) == ("digits", "softmax_cross_entropy", "sgd")
    assert manifest.slots == ("v",)
    assert manifest.hyper == {"lr": 0.1, "momentum": 0.0, "mu": 0.0, "clip": 0.0}
    assert [(entry.name, entry.shape, entry.dtype) for entry in manifest.inputs] == [
        ("x", (-1, 64), "float32"),
        ("y", (-1,), "int32"),
    ]
    assert manifest.layout.size == 2410


def test_the_step_graph_has_the_pinned_names(digits_folder):
    """Anyone may run it with a stock runtime, so the names are a contract."""
    graph = onnx.load(digits_folder / "step.onnx").graph
    parameters = ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"]
    assert {value.name for value in graph.input} == {
        *(f"{kind}.{name}" for kind in "wva" for name in parameters),
        *("x", "y", "sample_weight", "lr", "momentum", "mu", "clip"),
    }
    assert {value.name for value in graph.output} == {
        *(f"{kind}.{name}.new" for kind in "wv" for name in parameters),
        *("loss", "weight", "correct", "grad_norm"),
    }
    assert {value.name for value in onnx.load(digits_folder / "eval.onnx").graph.output} == {
        "loss",
        "weight",
        "correct",
    }
    assert [value.name for value in onnx.load(digits_folder / "infer.onnx").graph.output] == ["output"]


@pytest.mark.parametrize("name", ["step", "eval", "infer"])
def test_the_graphs_are_standard_onnx_for_old_runtimes(digits_folder, name):
    """Opset 18, IR version 9, the default domain only, a symbolic batch, nothing that tells the time."""
    model = onnx.load(digits_folder / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 9
    assert {node.domain for node in model.graph.node} == {""}
    x = next(value for value in model.graph.input if value.name == "x")
    assert x.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not model.metadata_props
    assert not any(node.op_type in ("Identity", "Expand") for node in model.graph.node)


def test_an_artifact_without_metrics_sums_loss_and_weight_only():
    """A metric that nobody asked for costs nothing."""
    artifact = build_artifact(mlp((4, 3)), loss="softmax_cross_entropy", metrics=())
    session, _ = open_session(artifact)
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    batch = Batch.of(np.zeros((2, 4), np.float32), np.zeros(2, np.int32))
    assert session.evaluate(weights, batch).keys() == {"loss", "weight"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_digits_model_learns(digits_for_all, installed, runtime):
    """Ten passes of plain training read more than 93 % of the held-out digits."""
    installed(runtime)
    artifact = TrainingArtifact.open(digits_for_all)
    session, _ = open_session(artifact, [runtime])
    weights = anchor = split_flat(artifact.initial_weights(), artifact.layout)
    slots = zero_slots(artifact)
    train, held_out = digits.split()
    for _ in range(10):
        for start in range(0, len(train), 32):
            batch = Batch.of(train.x[start : start + 32], train.y[start : start + 32])
            result = session.step(weights, slots, batch, {"lr": 0.1, "momentum": 0.9}, anchor)
            weights, slots = result.weights, result.slots
    sums = session.evaluate(weights, Batch.of(held_out.x, held_out.y))
    assert sums["weight"] == 360
    assert sums["correct"] / sums["weight"] > 0.93


def test_the_wide_digits_model_has_76810_parameters():
    """The larger model of the benchmarks."""
    assert digits_artifact(hidden=1024).layout.size == 76_810
