"""docs/guide-own-model.md, as a stranger follows it: every command typed, every program run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lichen
from models.runtime import TrainingArtifact

ROOT = Path(__file__).parents[3]
TFLITE = ROOT / ".venv-tflite" / "bin" / "python"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def blocks():
    """The guide's blocks: language and content, in order."""
    return _FENCE.findall((ROOT / "docs" / "guide-own-model.md").read_text())


@pytest.fixture(scope="module")
def commands(blocks):
    """What is typed, word by word."""
    lines = [line for language, code in blocks if not language for line in code.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(("python ", "lichen "))]


@pytest.fixture(scope="module")
def desk(blocks, tmp_path_factory):
    """A folder with the guide's two programs, and a way to type its commands there."""
    folder = tmp_path_factory.mktemp("desk")
    programs = [code for language, code in blocks if language == "python"]
    for name, sign in (("build.py", "lichen.from_torch("), ("record.py", "np.savez(")):
        (code,) = [program for program in programs if sign in program]
        (folder / name).write_text(code)

    def type_(*words, **options):
        program = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "lichen"]
        ran = subprocess.run(
            [*program, *words[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            **options,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return folder, type_


def typed(commands, *beginning):
    """The one command that begins with these words."""
    (found,) = [words for words in commands if words[: len(beginning)] == list(beginning)]
    return found


def test_the_guide_leads_from_a_module_to_a_mixed_fleet(desk, commands):
    """Build, verify, record, train: versions are folded from every runtime that is here, and it learns."""
    folder, type_ = desk
    type_(*typed(commands, "python", "build.py"))
    assert "reproduces the golden steps" in type_(*typed(commands, "lichen", "models", "verify"))
    type_(*typed(commands, "python", "record.py"))
    demo = typed(commands, "lichen", "demo")
    figures = json.loads(type_(*demo, "--json"))
    runtimes = {"onnx", "litert", "numpy"} | ({"tflite"} if TFLITE.exists() else set())
    assert figures["runtimes"].keys() >= runtimes
    assert all(figures["runtimes"][name]["folded"] > 0 for name in runtimes)
    assert figures["accuracy"] > 0.85
    artifact = TrainingArtifact.open(folder / "motion")
    kinds = {(entry.kind, entry.role) for entry in artifact.manifest.parameters}
    assert kinds == {("weight", "trainable"), ("buffer", "trainable")}


def test_the_guide_leads_from_an_onnx_file_too(desk, commands):
    """Its export call, its inspection and its build, with the count that it says."""
    folder, type_ = desk
    text = (ROOT / "docs" / "guide-own-model.md").read_text()
    call = re.search(r"`(torch\.onnx\.export\([^`]+)`", text)[1].replace("\n", " ")
    script = (folder / "build.py").read_text().partition("artifact =")[0]
    (folder / "export.py").write_text(f"{script}\nx = torch.zeros(2, 3, 64)\n{call}\n")
    type_("python", "export.py")
    assert "nothing stands in the way" in type_(*typed(commands, "lichen", "models", "inspect"))
    type_(*typed(commands, "lichen", "models", "build"))
    assert TrainingArtifact.open(folder / "motion").manifest.parameters


def test_the_front_page_builds_a_model_in_three_lines(tmp_path):
    """As it stands there."""
    blocks = [
        code for language, code in _FENCE.findall((ROOT / "README.md").read_text()) if language == "python"
    ]
    (code,) = [code for code in blocks if "from_torch" in code]
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=120, check=False)
    assert ran.returncode == 0
    assert TrainingArtifact.open(tmp_path / "motion").manifest.metrics == ("accuracy",)


def test_the_doors_to_keras_and_scikit_learn_are_as_the_guide_has_them(blocks):
    """The two calls, with a small model of each."""
    import keras
    from sklearn.linear_model import LogisticRegression

    (code,) = [code for language, code in blocks if language == "python" and "from_keras" in code]
    draw = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    estimator = LogisticRegression().fit(draw.normal(size=(60, 6)), draw.integers(0, 3, 60))
    names = {"lichen": lichen, "model": model, "estimator": estimator}
    exec(code, names)
    assert names["artifact"].manifest.class_names == ("0", "1", "2")
