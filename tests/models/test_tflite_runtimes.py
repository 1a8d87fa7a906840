"""The runtimes of .tflite files where they differ: what is missing, damaged, or made for other rows."""

import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.build import build_artifact
from models.runtime import Batch, TrainingArtifact, open_session, runtimes_for, split_flat, zero_slots
from models.runtime.litert_runtime import LitertRuntime
from models.runtime.tflite_runtime import TfliteRuntime
from models.zoo.mlp import mlp


def with_file(artifact, name, content):
    """The artifact with one of its files replaced, hash and all."""
    files = {**artifact.manifest.files, name: BlobRef.of(content)}
    octets = {key: artifact.read(key) for key in artifact.manifest.files}
    return TrainingArtifact.of(replace(artifact.manifest, files=files), {**octets, name: content})


@pytest.fixture(params=[LitertRuntime, TfliteRuntime], ids=["litert", "tflite"])
def runtime(request, installed):
    """Both runtimes, where their interpreters are installed."""
    made = request.param()
    installed(made.name)
    return made


@pytest.mark.parametrize("kind", [LitertRuntime, TfliteRuntime])
def test_an_artifact_without_its_graphs_is_refused_with_the_remedy(digits_folder, kind):
    """Also where no interpreter is installed: the artifact is what must change."""
    artifact = TrainingArtifact.open(digits_folder)
    with pytest.raises(ArtifactError, match=f"no graphs for the {kind().name} runtime") as caught:
        kind().open(artifact)
    assert "--runtimes onnx,tflite" in caught.value.hint
    assert runtimes_for(artifact) == ("onnx", "numpy")


@pytest.mark.parametrize(
    ("kind", "package"), [(LitertRuntime, "ai_edge_litert"), (TfliteRuntime, "tflite_runtime")]
)
def test_without_its_package_the_extra_is_named_and_the_next_is_taken(
    small_artifact, monkeypatch, kind, package
):
    """A name stands for one package: who asks for litert is never given another interpreter."""
    monkeypatch.setitem(sys.modules, f"{package}.interpreter", None)
    name = kind().name
    with pytest.raises(RuntimeUnavailable) as caught:
        kind().open(small_artifact)
    assert f"lichen[{name}]" in caught.value.hint
    session, skipped = open_session(small_artifact, [name, "numpy"])
    assert session.name == "numpy"
    assert skipped[0].startswith(f"{name}: ")


def test_an_interpreter_that_numpy_2_breaks_is_passed_over(small_artifact, monkeypatch):
    """It imports and fails at its first model with a SystemError: that model decides, no version does."""

    class Broken:
        def __init__(self, **options):
            raise SystemError("returned a result with an exception set") from AttributeError("_ARRAY_API")

    package = types.SimpleNamespace(Interpreter=Broken)
    monkeypatch.setitem(sys.modules, "tflite_runtime", package)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", package)
    session, skipped = open_session(small_artifact, ["tflite", "numpy"])
    assert session.name == "numpy"
    assert "_ARRAY_API" in skipped[0]
    assert "numpy 1.x" in skipped[0]


@pytest.mark.parametrize("name", ["step.tflite", "infer.tflite"])
def test_a_file_that_is_none_is_refused_by_name(small_artifact, installed, name):
    """A hash protects what was written, not what was wrong when it was.

    tflite_runtime 2.14 kills its process instead: the agent's worker is one of its own.
    """
    installed("litert")
    runtime = LitertRuntime()
    weights = split_flat(small_artifact.initial_weights(), small_artifact.layout)
    with pytest.raises(ArtifactError, match=rf"{name}: the {runtime.name} runtime cannot load it"):
        runtime.open(with_file(small_artifact, name, b"TFL3" * 100)).infer(
            weights, np.zeros((1, 5), np.float32)
        )


def test_graphs_made_for_different_batches_are_refused(small_artifact, runtime):
    """One padding fits all graphs of an artifact, or none."""
    network = mlp((5, 7, 3), seed=4, name="small")
    other = build_artifact(network, loss="softmax_cross_entropy", runtimes=("onnx", "tflite"), batch=16)
    mixed = with_file(small_artifact, "eval.tflite", other.read("eval.tflite"))
    weights = split_flat(mixed.initial_weights(), mixed.layout)
    with pytest.raises(ArtifactError, match="16 rows, another graph for 32"):
        runtime.open(mixed).evaluate(weights, Batch.of(np.zeros((2, 5), np.float32), np.zeros(2, np.int32)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, array: array.astype(np.float64), "float64"),
        (lambda name, array: array.reshape(-1)[:1], r"\[1\]"),
    ],
)
def test_arrays_that_do_not_fit_never_reach_the_interpreter(small_artifact, runtime, change, words):
    """An interpreter broadcasts a vector of one value, or takes the bytes for what they are not."""
    weights = split_flat(small_artifact.initial_weights(), small_artifact.layout)
    wrong = {name: change(name, array) for name, array in weights.items()}
    batch = Batch.of(np.zeros((2, 5), np.float32), np.zeros(2, np.int32))
    session = runtime.open(small_artifact)
    with pytest.raises(ArtifactError, match=rf"w\.layer1\.weight.*{words}"):
        session.step(wrong, zero_slots(small_artifact), batch, {}, weights)


def test_a_device_needs_no_onnx_for_it(digits_for_all, runtime):
    """Training on .tflite files imports neither onnx nor onnxruntime nor the builder."""
    script = (
        "import sys\n"
        "from models.runtime import TrainingArtifact, open_session\n"
        f"open_session(TrainingArtifact.open({str(digits_for_all)!r}), [{runtime.name!r}])\n"
        "heavy = {'onnx', 'onnxruntime', 'flatbuffers', 'models.build', 'cryptography', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
