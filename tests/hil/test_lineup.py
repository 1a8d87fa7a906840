"""Who trains with what: tried on the real artifact, before anything is started."""

import os
import sys

import pytest

from fl_protocol.errors import ConfigError, RuntimeUnavailable
from hil import lineup as module
from hil.lineup import draw_up
from models.build import build_artifact
from models.zoo.mlp import mlp

DEVICES = [f"dev-{number:02}" for number in range(7)]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A small artifact with graphs for all runtimes, its batch fixed to 24 rows in TFLite."""
    folder = tmp_path_factory.mktemp("artifact")
    kinds = ("onnx", "tflite")
    return build_artifact(
        mlp((5, 4, 3), name="small"), loss="softmax_cross_entropy", out=folder, runtimes=kinds, batch=24
    )


@pytest.fixture(scope="module")
def onnx_only(tmp_path_factory):
    """The same without .tflite graphs."""
    folder = tmp_path_factory.mktemp("artifact")
    return build_artifact(mlp((5, 4, 3), name="small"), loss="softmax_cross_entropy", out=folder)


@pytest.fixture
def without_tflite(monkeypatch, tmp_path):
    """A clone in which nobody made the environment of tflite_runtime."""
    monkeypatch.setattr(module, "_USUAL_PYTHON", tmp_path / "nowhere")


def test_a_mixed_fleet_takes_turns_and_says_who_is_missing_and_how_to_get_it(artifact, without_tflite):
    """Three runtimes for seven devices; the fourth has a reason and a remedy."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    drawn = draw_up(DEVICES, "mixed", artifact)
    assert [drawn.seats[device].runtime for device in DEVICES] == [
        *("onnx", "litert", "numpy") * 2,
        "onnx",
    ]
    assert drawn.absent.keys() == {"tflite"}
    assert "No module named 'tflite_runtime'" in drawn.absent["tflite"]
    assert "make demo-mixed" in drawn.absent["tflite"]
    assert drawn.rows == 24


def test_tflite_devices_run_under_their_own_interpreter(artifact):
    """The environment of `make demo-mixed`; all others run under ours."""
    python = module._USUAL_PYTHON
    if not python.exists():
        pytest.skip("tflite_runtime is not installed")
    drawn = draw_up(DEVICES, "mixed", artifact)
    assert {seat.python for seat in drawn.seats.values() if seat.runtime == "tflite"} == {str(python)}
    assert {seat.python for seat in drawn.seats.values() if seat.runtime != "tflite"} == {sys.executable}
    assert drawn.absent.keys() <= {"litert", "onnx"}


def test_an_interpreter_that_was_named_must_do(artifact, tmp_path):
    """One without the package, one that is no Python, one that is nothing: refused, not left out."""
    for python in (sys.executable, "/bin/false", tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="--tflite-python"):
            draw_up(DEVICES, "mixed", artifact, tflite_python=python)


def test_an_artifact_of_onnx_graphs_makes_a_fleet_of_two_runtimes(onnx_only):
    """What its owner did not build for takes no part, with the words that change it."""
    pytest.importorskip("onnxruntime")
    drawn = draw_up(DEVICES, "mixed", onnx_only)
    assert {seat.runtime for seat in drawn.seats.values()} == {"onnx", "numpy"}
    assert "build it with --runtimes onnx,tflite" in drawn.absent["litert"]
    assert drawn.rows is None


def test_a_fleet_of_one_runtime_that_does_not_work_is_none(onnx_only):
    """Agents that cannot train would be waited for, for ever."""
    with pytest.raises(RuntimeUnavailable, match="no litert fleet can be made up here"):
        draw_up(DEVICES, "litert", onnx_only)


def test_fewer_devices_than_runtimes_are_refused(onnx_only):
    """A runtime without a device would be missing without a word."""
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match="1 devices cannot have 2 runtimes"):
        draw_up(DEVICES[:1], "mixed", onnx_only)


def test_an_interpreter_that_crashes_on_the_artifact_is_a_reason(artifact, tmp_path):
    """A runtime may end its process on a file: the demo is another one."""
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -SEGV $$\n")
    os.chmod(dying, 0o755)
    with pytest.raises(ConfigError, match="ended with -11"):
        draw_up(DEVICES, "mixed", artifact, tflite_python=dying)
