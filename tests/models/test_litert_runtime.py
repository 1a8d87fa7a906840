"""The litert runtime where it differs from the others: what is missing, damaged, or made for other rows."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.build import build_artifact
from models.runtime import Batch, TrainingArtifact, open_session, runtimes_for, split_flat, zero_slots
from models.runtime import litert_runtime as module
from models.runtime.litert_runtime import LitertRuntime
from models.zoo.mlp import mlp


def with_file(artifact, name, content):
    """The artifact with one of its files replaced, hash and all."""
    files = {**artifact.manifest.files, name: BlobRef.of(content)}
    octets = {key: artifact.read(key) for key in artifact.manifest.files}
    return TrainingArtifact.of(replace(artifact.manifest, files=files), {**octets, name: content})


def test_an_artifact_without_its_graphs_is_refused_with_the_remedy(digits_folder):
    """Also where no interpreter is installed: the artifact is what must change."""
    artifact = TrainingArtifact.open(digits_folder)
    with pytest.raises(ArtifactError, match="no graphs for the litert runtime") as caught:
        LitertRuntime().open(artifact)
    assert "--runtimes onnx,tflite" in caught.value.hint
    assert runtimes_for(artifact) == ("onnx", "numpy")


def test_without_an_interpreter_both_extras_are_named(small_artifact, monkeypatch):
    """And the next runtime in the list is taken."""
    for package in ("ai_edge_litert", "tflite_runtime"):
        monkeypatch.setitem(sys.modules, f"{package}.interpreter", None)
    with pytest.raises(RuntimeUnavailable) as caught:
        LitertRuntime().open(small_artifact)
    assert "lichen[litert]" in caught.value.hint
    assert "lichen[tflite]" in caught.value.hint
    session, skipped = open_session(small_artifact, ["litert", "numpy"])
    assert session.name == "numpy"
    assert skipped[0].startswith("litert: ")


def test_tflite_runtime_is_the_second_choice_and_only_with_numpy_1(small_artifact, monkeypatch):
    """It imports under numpy 2 and dies at the first model."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")

    def found(name):
        if name.startswith("ai_edge_litert"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return interpreter

    monkeypatch.setattr(module, "import_module", found)
    monkeypatch.setattr(np, "__version__", "1.26.4")
    assert LitertRuntime().open(small_artifact).name == "litert"
    monkeypatch.setattr(np, "__version__", "2.4.0")
    with pytest.raises(RuntimeUnavailable, match=r"numpy 2\.4\.0"):
        LitertRuntime().open(small_artifact)


@pytest.mark.parametrize("name", ["step.tflite", "infer.tflite"])
def test_a_file_that_is_none_is_refused_by_name(small_artifact, installed, name):
    """A hash protects what was written, not what was wrong when it was."""
    installed("litert")
    weights = split_flat(small_artifact.initial_weights(), small_artifact.layout)
    with pytest.raises(ArtifactError, match=rf"{name}: the litert runtime cannot load it"):
        LitertRuntime().open(with_file(small_artifact, name, b"TFL3" * 100)).infer(
            weights, np.zeros((1, 5), np.float32)
        )


def test_graphs_made_for_different_batches_are_refused(small_artifact, installed):
    """One padding fits all graphs of an artifact, or none."""
    installed("litert")
    network = mlp((5, 7, 3), seed=4, name="small")
    other = build_artifact(network, loss="softmax_cross_entropy", runtimes=("onnx", "tflite"), batch=16)
    mixed = with_file(small_artifact, "eval.tflite", other.read("eval.tflite"))
    weights = split_flat(mixed.initial_weights(), mixed.layout)
    with pytest.raises(ArtifactError, match="16 rows, another graph for 32"):
        LitertRuntime().open(mixed).evaluate(
            weights, Batch.of(np.zeros((2, 5), np.float32), np.zeros(2, np.int32))
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, array: array.astype(np.float64), "float64"),
        (lambda name, array: array.reshape(-1)[:1], r"\[1\]"),
    ],
)
def test_arrays_that_do_not_fit_never_reach_the_interpreter(small_artifact, installed, change, words):
    """An interpreter broadcasts a vector of one value, or takes the bytes for what they are not."""
    installed("litert")
    weights = split_flat(small_artifact.initial_weights(), small_artifact.layout)
    wrong = {name: change(name, array) for name, array in weights.items()}
    batch = Batch.of(np.zeros((2, 5), np.float32), np.zeros(2, np.int32))
    session = LitertRuntime().open(small_artifact)
    with pytest.raises(ArtifactError, match=rf"w\.layer1\.weight.*{words}"):
        session.step(wrong, zero_slots(small_artifact), batch, {}, weights)


def test_a_device_needs_no_onnx_for_it(digits_for_all, installed):
    """Training on LiteRT imports neither onnx nor onnxruntime nor the builder."""
    installed("litert")
    script = (
        "import sys\n"
        "from models.runtime import TrainingArtifact, open_session\n"
        f"open_session(TrainingArtifact.open({str(digits_for_all)!r}), ['litert'])\n"
        "heavy = {'onnx', 'onnxruntime', 'flatbuffers', 'models.build', 'cryptography', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
