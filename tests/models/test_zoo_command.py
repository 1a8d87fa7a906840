"""``lichen models zoo``: people can list what is there and copy it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fl_protocol.errors import ArtifactError
from models.runtime import TrainingArtifact
from models.zoo.catalogue import CATALOGUE, find
from models.zoo.command import models

NAMES = [model.name for model in CATALOGUE]


def lichen_models(*words):
    return CliRunner().invoke(models, [str(word) for word in words])


def test_the_list_tells_what_is_there():
    """As a table, and as JSON for scripts."""
    table = lichen_models("zoo")
    assert table.exit_code == 0, table.output
    assert all(name in table.output for name in NAMES)
    rows = json.loads(lichen_models("zoo", "--json").output)
    assert [row["name"] for row in rows] == NAMES
    for row in rows:
        folder = Path(row["path"])
        assert row["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
        assert row["bytes"] == sum(row["files"].values())
    (cnn,) = [row for row in rows if row["name"] == "digits-cnn"]
    assert (cnn["parameters"], cnn["input"], cnn["loss"]) == (6138, [64], "softmax_cross_entropy")


def test_a_model_is_copied_out(tmp_path):
    """The copy is the artifact; its name alone is shown, and one that is not there is refused by name."""
    copied = json.loads(lichen_models("zoo", "digits-mlp", "--out", tmp_path / "mine", "--json").output)
    assert copied["path"] == str(tmp_path / "mine")
    assert set(copied["files"]) == {path.name for path in (tmp_path / "mine").iterdir()}
    assert TrainingArtifact.open(tmp_path / "mine").digest == find("digits-mlp").open().digest
    assert lichen_models("zoo", "--out", tmp_path / "other").exit_code == 2
    assert not (tmp_path / "other").exists()
    with pytest.raises(ArtifactError, match="no model 'digits-mpl'") as refused:
        find("digits-mpl")
    assert refused.value.hint == "did you mean digits-mlp?"


def test_the_list_needs_no_builder():
    """On a device there is no onnx."""
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['flatbuffers'] = None\n"
        "from models.zoo.command import models; models(['zoo'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "motion-gru" in done.stdout
