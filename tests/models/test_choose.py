"""Which runtime trains: the first that opens the artifact and reproduces its golden steps."""

import builtins
import subprocess
import sys

import pytest

from fl_protocol.errors import RuntimeUnavailable
from models.runtime import RUNTIMES, open_session, try_runtime
from models.runtime.numpy_ops import KERNELS


@pytest.fixture
def without_onnxruntime(monkeypatch):
    """A machine on which onnxruntime is not installed."""
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_first_that_works_is_taken(small_artifact, installed, name):
    """In the order of preference, without a reason where nothing was passed over."""
    installed(name)
    session, skipped = open_session(small_artifact, [name])
    assert session.name == name
    assert skipped == []


def test_a_runtime_that_is_missing_is_passed_over_with_the_extras_name(small_artifact, without_onnxruntime):
    """The reason says what to install."""
    session, skipped = open_session(small_artifact, ["onnx", "numpy"])
    assert session.name == "numpy"
    assert "lichen[onnx]" in skipped[0]
    trial = try_runtime("onnx", small_artifact)
    assert not trial.installed
    assert trial.deviation is None


def test_a_runtime_that_computes_wrongly_is_passed_over(small_artifact, monkeypatch):
    """An illegal result is as bad as a missing package: the next one is tried."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setitem(KERNELS, "Relu", lambda attributes, x: x)
    session, skipped = open_session(small_artifact, ["numpy", "onnx"])
    assert session.name == "onnx"
    assert "numpy: the golden steps deviate" in skipped[0]
    assert try_runtime("numpy", small_artifact).reason.startswith("the golden steps deviate")


def test_where_none_works_every_reason_is_given(small_artifact, monkeypatch, without_onnxruntime):
    """One error that holds them all, an unknown name included."""
    monkeypatch.setitem(KERNELS, "Relu", lambda attributes, x: x)
    with pytest.raises(RuntimeUnavailable, match=r"(?s)onnx: .*numpy: .*tensorflow: no runtime is called"):
        open_session(small_artifact, ["onnx", "numpy", "tensorflow"])


def test_a_trial_times_steps_only_when_asked(small_artifact):
    """Timing is for people."""
    assert try_runtime("numpy", small_artifact).step_ms is None
    timed = try_runtime("numpy", small_artifact, timed_steps=3)
    assert timed.step_ms > 0
    assert timed.reason == ""


def test_a_device_needs_neither_onnx_nor_the_builder(digits_folder):
    """Training in numpy imports no runtime, no onnx, nothing of models.build."""
    script = (
        "import sys\n"
        "from models.runtime import TrainingArtifact, open_session\n"
        f"open_session(TrainingArtifact.open({str(digits_folder)!r}), ['numpy'])\n"
        "heavy = {'onnx', 'onnxruntime', 'onnxscript', 'models.build', 'cryptography', 'asyncio', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
