"""The cache: what a task needs, whole and verified, and no more of the past than one step."""

import errno
import hashlib
import os
from dataclasses import replace

import pytest

from edge_agent.cache import Cache, files_for_a_device, runtimes_found
from fl_protocol.artifact import ArtifactManifest, Input, Parameter
from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError
from fl_protocol.plan import TrainingPlan
from fl_protocol.task import Pacing, TaskManifest
from fl_protocol.version import VersionId

FILES = {"step.onnx": b"step", "golden.npz": b"golden", "weights.bin": b"initial"}


def artifact(role: str = "trainable") -> ArtifactManifest:
    return ArtifactManifest(
        name="toy",
        loss="mse",
        metrics=(),
        optimizer="sgd",
        slots=(),
        hyper={},
        parameters=(Parameter(name="w", shape=(2,)), Parameter(name="b", shape=(2,), role=role)),
        inputs=(Input(name="x", shape=(-1, 2), dtype="float32"),),
        files={name: BlobRef.of(content) for name, content in FILES.items()},
    )


def task(manifest: ArtifactManifest, weights: bytes) -> TaskManifest:
    return TaskManifest(
        fleet="f",
        task="main",
        counter=1,
        term=1,
        version=VersionId(epoch=1, number=1, digest=bytes(16)),
        artifact=BlobRef.of(manifest.to_json()),
        weights=BlobRef.of(weights),
        fingerprint=manifest.layout.fingerprint,
        plan=TrainingPlan(),
        codec="float32",
        pacing=Pacing(),
    )


@pytest.fixture
def cache(tmp_path):
    """An empty cache."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "artifacts").mkdir()
    return Cache(tmp_path / "blobs", tmp_path / "artifacts")


def fetch(cache: Cache, wanted: TaskManifest, weights: bytes, manifest: ArtifactManifest) -> list[set[str]]:
    """Give what is missing until nothing is; the names that were asked for, round by round."""
    content = {BlobRef.of(one).sha256: one for one in (*FILES.values(), weights, manifest.to_json())}
    rounds = []
    while missing := cache.missing(wanted):
        rounds.append({path.name for path in missing})
        for path, ref in missing.items():
            path.write_bytes(content[ref.sha256])
    return rounds


def test_the_manifest_comes_first_and_the_folder_opens_last(cache):
    """manifest.json appears when all the rest of the artifact is there."""
    manifest = artifact()
    wanted = task(manifest, b"weights")
    first, second = fetch(cache, wanted, b"weights", manifest)
    assert ".manifest.json" in first
    assert second == {"step.onnx", "golden.npz"}
    folder = cache.artifact(wanted.artifact)
    assert {path.name for path in folder.iterdir()} == {"step.onnx", "golden.npz", "manifest.json"}


@pytest.mark.parametrize(("role", "travels"), [("trainable", False), ("frozen", True), ("personal", True)])
def test_initial_weights_travel_only_where_nothing_else_carries_them(role, travels):
    """A device gets the weights of its version; weights.bin would be the same bytes again."""
    assert ("weights.bin" in files_for_a_device(artifact(role))) is travels


@pytest.mark.parametrize(
    ("runtimes", "graphs"),
    [
        ((), {"step.onnx", "step.tflite"}),
        (("onnx", "numpy"), {"step.onnx"}),
        (("numpy",), {"step.onnx"}),
        (("litert",), {"step.tflite"}),
        (("tflite",), {"step.tflite"}),
        (("litert", "onnx"), {"step.onnx", "step.tflite"}),
    ],
)
def test_only_graphs_that_run_here_are_fetched(runtimes, graphs):
    """A metered link carries no file that nobody opens."""
    plain = artifact()
    both = replace(plain, files={**plain.files, "step.tflite": BlobRef.of(b"lite")})
    names = set(files_for_a_device(both, runtimes))
    assert {name for name in names if name.startswith("step.")} == graphs
    assert "golden.npz" in names


def test_graphs_are_fetched_for_packages_that_are_here_and_for_all_where_none_is(monkeypatch):
    """Asking for every runtime must not download files that nothing here opens; NumPy always is."""
    here = {"onnxruntime"}
    monkeypatch.setattr("edge_agent.cache.find_spec", lambda name: name in here or None)
    assert runtimes_found(("onnx", "litert", "tflite", "numpy")) == ("onnx", "numpy")
    assert runtimes_found(("litert", "tflite")) == ("litert", "tflite")
    here.add("tflite_runtime")
    assert runtimes_found(("litert", "tflite")) == ("tflite",)


def test_a_file_is_hashed_once_per_process_and_a_damaged_one_is_missing(cache, tmp_path):
    """A fresh process, or one that has reason to, looks again."""
    manifest = artifact()
    wanted = task(manifest, b"weights")
    fetch(cache, wanted, b"weights", manifest)
    damaged = cache.artifact(wanted.artifact) / "step.onnx"
    damaged.write_bytes(b"stepp")
    assert not cache.missing(wanted)
    cache.distrust()
    assert set(cache.missing(wanted)) == {damaged}
    assert not damaged.exists()


def test_a_file_that_cannot_be_read_is_fetched_again(cache, monkeypatch):
    """A bad sector under it: the next file lies elsewhere; the agent does not stumble over it for ever."""
    manifest = artifact()
    wanted = task(manifest, b"weights")
    fetch(cache, wanted, b"weights", manifest)
    weights = cache.weights(wanted.weights)
    read = hashlib.file_digest

    def file_digest(stream, name):
        if stream.name == str(weights):
            raise OSError(errno.EIO, "Input/output error")
        return read(stream, name)

    monkeypatch.setattr("hashlib.file_digest", file_digest)
    cache.distrust()
    assert set(cache.missing(wanted)) == {weights}
    assert not weights.exists()
    assert cache.damaged == 1


def test_the_current_and_the_previous_are_kept(cache):
    """Older weights go, and parts of downloads that nobody will finish."""
    manifest = artifact()
    for number in range(4):
        content = bytes([number])
        wanted = task(manifest, content)
        fetch(cache, wanted, content, manifest)
        os.utime(cache.weights(wanted.weights), (number, number))
        (cache.weights(wanted.weights).parent / f".{'ab' * 32}.part").touch()
        cache.drop_old(wanted)
    blobs = cache.weights(wanted.weights).parent
    assert {path.read_bytes() for path in blobs.iterdir()} == {b"\2", b"\3"}
    assert not cache.missing(wanted)


def test_a_manifest_that_is_too_large_is_refused(cache):
    """Refused before a byte of it is fetched."""
    manifest = artifact()
    huge = BlobRef(sha256=bytes(32), size=1 << 30, chunks=(bytes(32),) * 16384)
    wanted = task(manifest, b"weights")
    object.__setattr__(wanted, "artifact", huge)
    with pytest.raises(ArtifactError, match="too large"):
        cache.missing(wanted)
