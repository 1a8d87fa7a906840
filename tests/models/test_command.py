"""``lichen models``: as a person types it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from fl_protocol.errors import ArtifactError
from models.build.command import models
from models.runtime import TrainingArtifact
from models.zoo.forward import Network
from models.zoo.mlp import mlp


@pytest.fixture
def network(tmp_path):
    """A forward graph in a file."""
    path = tmp_path / "net.onnx"
    onnx.save(mlp((4, 6, 3)), path)
    return path


def run(*words):
    """The command in this process; errors of ours come through."""
    return CliRunner().invoke(models, [str(word) for word in words])


def lichen(*words):
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "lichen", "models", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_build_writes_an_artifact_and_shows_it(network, tmp_path):
    """Parameters, files and what each runtime made of it."""
    result = run("build", network, "--loss", "softmax_cross_entropy", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert TrainingArtifact.open(tmp_path / "out").layout.size == 51
    for words in (
        "layer1.weight",
        "6 x 4",
        "51 parameters",
        "reproduces the golden steps",
        "--expect-params",
    ):
        assert words in result.output


def test_build_prints_one_json_object(network, tmp_path):
    """For scripts: everything that the tables say."""
    words = ["--loss", "softmax_cross_entropy", "--out", tmp_path / "out", "--expect-params", 51, "--json"]
    report = json.loads(run("build", network, *words).output)
    assert report["name"] == "net"
    assert report["parameters"] == 51
    assert report["tensors"]["layer2.bias"] == [3]
    assert report["sha256"] == TrainingArtifact.open(tmp_path / "out").digest.hex()
    assert {entry["runtime"] for entry in report["runtimes"]} == {"onnx", "numpy"}


def test_build_writes_graphs_for_tflite_where_asked_to(network, tmp_path):
    """Beside the ONNX ones; the runtime that runs them is tried and shown."""
    words = ["--loss", "softmax_cross_entropy", "--out", tmp_path / "out", "--json"]
    report = json.loads(run("build", network, *words, "--runtimes", "onnx, tflite", "--batch", 16).output)
    assert {"step.onnx", "step.tflite", "eval.tflite", "infer.tflite"} <= report["files"].keys()
    assert {entry["runtime"] for entry in report["runtimes"]} == {"onnx", "litert", "tflite", "numpy"}
    assert not any(entry["installed"] and entry["reason"] for entry in report["runtimes"])


def test_build_shows_what_is_personal_and_what_is_a_buffer(tmp_path):
    """With its role, in the table and for scripts; inspect and verify say the same."""
    net = Network("net", [4], seed=1)
    value = net.batch_norm("norm", net.linear("body", net.x, 6))
    onnx.save(net.finish(net.linear("head", value, 3)), tmp_path / "net.onnx")
    choices = ["--personal", "head.*", "--batch-norm", "averaged"]
    words = ["--loss", "softmax_cross_entropy", "--out", tmp_path / "out", "--correction", *choices]
    result = run("build", tmp_path / "net.onnx", *words)
    assert result.exit_code == 0, result.output
    shown = run("inspect", tmp_path / "net.onnx", *choices).output
    verified = run("verify", tmp_path / "out").output
    for output in (result.output, shown, verified):
        lines = {line.split()[1]: line for line in output.splitlines() if line.startswith("│")}
        assert "personal" in lines["head.bias"]
        assert "trainable buffer" in lines["norm.running_var"]
        assert "buffer" not in lines["norm.weight"]
    report = json.loads(run("verify", tmp_path / "out", "--json").output)
    assert report["roles"]["head.weight"] == ["weight", "personal"]
    assert report["roles"]["norm.running_mean"] == ["buffer", "trainable"]
    assert TrainingArtifact.open(tmp_path / "out").manifest.hyper["correction"] == 1


def test_verify_shows_runtimes_and_times(digits_folder):
    """A sound artifact passes; the time of a step stands beside it."""
    result = run("verify", digits_folder)
    assert result.exit_code == 0, result.output
    assert "reproduces the golden steps" in result.output
    report = json.loads(run("verify", digits_folder, "--json").output)
    numpy = next(entry for entry in report["runtimes"] if entry["runtime"] == "numpy")
    assert numpy["installed"]
    assert numpy["deviation"] < 1e-5
    assert numpy["step_ms"] > 0


def test_verify_refuses_a_damaged_artifact(digits_folder, tmp_path):
    """The file is named."""
    folder = shutil.copytree(digits_folder, tmp_path / "copy")
    (folder / "step.onnx").write_bytes(b"no")
    result = run("verify", folder)
    assert isinstance(result.exception, ArtifactError)
    assert "step.onnx" in str(result.exception)


def test_verify_fails_where_a_runtime_computes_wrongly(digits_folder, monkeypatch):
    """After the table, so that a person sees which one and by how much."""
    from models.runtime.numpy_ops import KERNELS

    monkeypatch.setitem(KERNELS, "Relu", lambda attributes, x: x)
    result = run("verify", digits_folder)
    assert isinstance(result.exception, ArtifactError)
    assert "fails on numpy" in str(result.exception)
    assert "deviate" in result.output


def test_exit_codes_are_those_of_every_command(network, tmp_path):
    """0 ok, 1 failed, 2 usage; the error goes to stderr, with what to do."""
    built = lichen("build", network, "--loss", "softmax_cross_entropy", "--out", tmp_path / "out", "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["parameters"] == 51
    failed = lichen("build", network, "--loss", "hinge", "--out", tmp_path / "other")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: there is no loss 'hinge'")
    assert "hint: there are softmax_cross_entropy" in failed.stderr
    assert failed.stdout == ""
    assert lichen("build", network, "--out", tmp_path / "other").returncode == 2
    assert lichen("verify", tmp_path / "nothing").returncode == 2


def test_without_the_builders_packages_the_extra_is_named(network, tmp_path, monkeypatch):
    """A missing onnx is a sentence with a remedy, not a traceback."""
    monkeypatch.setitem(sys.modules, "models.build.builder", None)
    result = run("build", network, "--loss", "softmax_cross_entropy", "--out", tmp_path / "out")
    assert "lichen[models]" in str(result.exception)


def test_build_takes_the_choices_of_the_builder(network, tmp_path):
    """Another loss, optimizer and metric, and only the head trained; what is frozen is said."""
    words = ["--loss", "mse", "--optimizer", "adamw", "--metric", "mae", "--train", "layer2.*", "--json"]
    report = json.loads(run("build", network, *words, "--out", tmp_path / "out").output)
    assert (report["loss"], report["optimizer"], report["metrics"]) == ("mse", "adamw", ["mae"])
    assert report["tensors"].keys() == {"layer2.weight", "layer2.bias"}
    assert report["frozen"] == {"layer1.weight": [6, 4], "layer1.bias": [6]}
    assert "frozen" in run("verify", tmp_path / "out").output


def test_inspect_shows_parameters_and_operators(network):
    """Nothing is built, and nothing stands in the way."""
    result = run("inspect", network, "--train", "layer2.*")
    assert result.exit_code == 0, result.output
    for words in ("layer1.weight", "6 x 4", "frozen", "trainable", "Gemm", "nothing stands in the way"):
        assert words in result.output
    report = json.loads(run("inspect", network, "--json").output)
    assert report["obstacles"] == []
    assert report["output"] == ["batch", 3]
    assert {"op": "Relu", "count": 1, "support": "rule"} in report["operators"]


def test_inspect_names_every_node_that_stands_in_the_way(network, tmp_path):
    """All of them at once, each by its name; the exit code says that it cannot be built."""
    model = onnx.load(network)
    for at, node in enumerate(model.graph.node):
        if node.op_type == "Relu":
            node.op_type = "Tan"
            node.name = f"odd{at}"
    onnx.save(model, tmp_path / "odd.onnx")
    result = run("inspect", tmp_path / "odd.onnx")
    assert isinstance(result.exception, ArtifactError)
    assert "node 'odd1' (Tan): the operator is not supported" in result.output
    assert "unsupported" in result.output
    failed = lichen("inspect", tmp_path / "odd.onnx", "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["obstacles"][0]["hint"]
    assert "cannot be trained as it is" in failed.stderr


def test_inspect_says_why_a_supported_model_cannot_be_trained(tmp_path):
    """The first reason that a build would give."""
    model = mlp((4, 6, 3))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "idle"))
    onnx.save(model, tmp_path / "net.onnx")
    result = run("inspect", tmp_path / "net.onnx")
    assert isinstance(result.exception, ArtifactError)
    assert "no gradient reaches idle" in result.output


def test_wrap_makes_an_artifact_of_bare_weights(tmp_path):
    """For a trainer of one's own: layout and weights, no graphs; it can be verified."""
    np.savez(tmp_path / "weights.npz", w=np.arange(6.0).reshape(2, 3), b=np.zeros(3, np.float32))
    report = json.loads(run("wrap", tmp_path / "weights.npz", "--out", tmp_path / "out", "--json").output)
    assert report["tensors"] == {"w": [2, 3], "b": [3]}
    assert report["files"].keys() == {"weights.bin"}
    artifact = TrainingArtifact.open(tmp_path / "out")
    np.testing.assert_array_equal(artifact.initial_weights(), [0, 1, 2, 3, 4, 5, 0, 0, 0])
    verified = run("verify", tmp_path / "out")
    assert verified.exit_code == 0, verified.output
    assert "trainer of your own" in verified.output


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no weights"),
        ({"n": np.arange(3)}, "'n' is int64"),
        ({"w": np.array([1, np.inf])}, "'w' holds a value"),
    ],
)
def test_wrap_refuses_what_is_no_weight(tmp_path, arrays, words):
    """Each by name."""
    np.savez(tmp_path / "weights.npz", **arrays)
    result = run("wrap", tmp_path / "weights.npz", "--out", tmp_path / "out")
    assert isinstance(result.exception, ArtifactError)
    assert words in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_wrap_keeps_running_statistics_apart(tmp_path):
    """They end the layout as buffers, wherever they stand in the file; the manifest keeps its order."""
    np.savez(tmp_path / "weights.npz", mean=np.ones(2), w=np.ones((3, 2)), var=np.ones(2))
    command = ("wrap", tmp_path / "weights.npz", "--out", tmp_path / "out")
    assert run(*command, "--buffers", "mean", "--buffers", "v?r").exit_code == 0
    manifest = TrainingArtifact.open(tmp_path / "out").manifest
    assert [parameter.name for parameter in manifest.parameters] == ["mean", "w", "var"]
    kinds = [(tensor.name, tensor.kind) for tensor in manifest.layout.tensors]
    assert kinds == [("w", "weight"), ("mean", "buffer"), ("var", "buffer")]


def test_wrap_refuses_a_file_that_is_none(tmp_path):
    """With a line that writes one."""
    (tmp_path / "weights.npz").write_bytes(b"no")
    result = run("wrap", tmp_path / "weights.npz", "--out", tmp_path / "out")
    assert isinstance(result.exception, ArtifactError)
    assert "np.savez" in str(result.exception)
