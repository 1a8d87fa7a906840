"""``lichen models``: as a person types it."""

import json
import shutil
import subprocess
import sys

import onnx
import pytest
from click.testing import CliRunner

from fl_protocol.errors import ArtifactError
from models.build.command import models
from models.runtime import TrainingArtifact
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
