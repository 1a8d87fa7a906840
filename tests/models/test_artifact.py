"""The training artifact: opened only when every file is what the manifest says."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from fl_protocol.artifact import ArtifactManifest
from fl_protocol.errors import ArtifactError
from models.runtime import TrainingArtifact

FILES = ("eval.onnx", "golden.npz", "infer.onnx", "step.onnx", "weights.bin")


@pytest.fixture
def folder(digits_folder, tmp_path):
    """A copy of the digits artifact to damage."""
    return shutil.copytree(digits_folder, tmp_path / "artifact")


def test_an_artifact_opens_and_names_itself_by_its_manifest(digits_folder):
    """The identity is the sha256 of manifest.json."""
    artifact = TrainingArtifact.open(digits_folder)
    text = (digits_folder / "manifest.json").read_bytes()
    assert artifact.digest == hashlib.sha256(text).digest()
    assert artifact.manifest_json == text
    assert artifact.path == digits_folder
    assert sorted(artifact.manifest.files) == list(FILES)


def test_initial_weights_are_the_flat_vector_in_wire_order(digits_folder):
    """float32[2410]: weights, then bias, layer by layer; biases start at zero."""
    artifact = TrainingArtifact.open(digits_folder)
    weights = artifact.initial_weights()
    assert weights.shape == (2410,)
    assert weights.dtype == np.float32
    assert weights[:2048].any()
    assert not weights[2048:2080].any()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(folder, name, damage):
    """A flipped bit, a lost tail or a missing file is found at once, and the error says which."""
    content = (folder / name).read_bytes()
    if damage == "flip":
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        (folder / name).write_bytes(content[: len(content) // 2])
    else:
        (folder / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        TrainingArtifact.open(folder)


def test_a_file_that_changes_after_opening_is_found_when_it_is_read(folder):
    """Between opening and reading a card may rot or a person may edit."""
    artifact = TrainingArtifact.open(folder)
    (folder / "step.onnx").write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"step\.onnx"):
        artifact.read("step.onnx")


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"format": "other/9"}', b"\xff\xfe", b"[" * 5000])
def test_a_manifest_that_is_none_is_refused(folder, text):
    """Whatever stands in manifest.json, the answer is an ArtifactError."""
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError):
        TrainingArtifact.open(folder)


def test_a_folder_without_manifest_is_no_artifact(tmp_path):
    """The error says what an artifact is."""
    with pytest.raises(ArtifactError, match="no training artifact"):
        TrainingArtifact.open(tmp_path)


def test_an_artifact_in_memory_is_the_one_on_disk(small_artifact, tmp_path):
    """Saving changes neither identity nor content."""
    saved = small_artifact.save(tmp_path / "there")
    assert small_artifact.path is None
    assert saved.digest == small_artifact.digest
    np.testing.assert_array_equal(saved.initial_weights(), small_artifact.initial_weights())


def test_saving_again_over_another_artifact_replaces_it_whole(small_artifact, folder):
    """A folder never ends up with the files of two artifacts."""
    assert small_artifact.save(folder).digest == small_artifact.digest


def test_saving_keeps_what_a_newer_builder_wrote_in_the_manifest(folder, tmp_path):
    """Unknown entries belong to the identity: a copy that dropped them would be another artifact."""
    body = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**body, "later": 1}))
    artifact = TrainingArtifact.open(folder)
    assert artifact.save(tmp_path / "copy").digest == artifact.digest


def test_weights_that_are_not_finite_are_refused(small_artifact):
    """A NaN in the start would be in every update."""
    poisoned = np.full(small_artifact.layout.size, np.nan, "<f4").tobytes()
    with pytest.raises(ArtifactError, match="not finite"):
        _with_weights(small_artifact, poisoned).initial_weights()


def test_weights_of_another_length_are_refused(small_artifact):
    """The file must hold exactly the manifest's parameters."""
    with pytest.raises(ArtifactError, match="its parameters need"):
        _with_weights(small_artifact, bytes(8)).initial_weights()


def test_weights_alone_are_an_artifact_that_holds_no_graph(small_artifact):
    """Trainers of one's own need no graphs; who asks for one is told."""
    from fl_protocol.blob import BlobRef

    body = json.loads(small_artifact.manifest_json)
    weights = small_artifact.read("weights.bin")
    body["files"] = {"weights.bin": {"sha256": BlobRef.of(weights).sha256.hex(), "size": len(weights)}}
    manifest = ArtifactManifest.from_json(json.dumps(body).encode())
    artifact = TrainingArtifact.of(manifest, {"weights.bin": weights})
    assert artifact.initial_weights().size == small_artifact.layout.size
    with pytest.raises(ArtifactError, match=r"holds no step\.onnx"):
        artifact.read("step.onnx")


def _with_weights(artifact, weights):
    from fl_protocol.blob import BlobRef

    body = json.loads(artifact.manifest_json)
    body["files"]["weights.bin"] = {"sha256": BlobRef.of(weights).sha256.hex(), "size": len(weights)}
    manifest = ArtifactManifest.from_json(json.dumps(body).encode())
    return TrainingArtifact.of(manifest, {"weights.bin": weights})
