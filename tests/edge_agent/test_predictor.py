"""The predictor: the newest model of a device, read by an app while the agent replaces files under it."""

import contextlib
import os
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from shown_device import App, Device

from edge_agent.personal import pack_personal
from edge_agent.predictor import Predictor
from fl_protocol.errors import ArtifactError, LayoutError, StorageError
from fl_protocol.version import VersionId
from models.runtime import RUNTIMES, TrainingArtifact, split_flat
from models.zoo import digits

X = digits.load().x[:200]
NOBODY = 65534


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path / "state")


def expected(artifact: TrainingArtifact, flat: np.ndarray) -> np.ndarray:
    return RUNTIMES["numpy"].open(artifact).infer(split_flat(flat, artifact.layout), X)


def test_it_predicts_with_the_published_weights(device, artifact):
    """Not with the initial ones, nor with what this device trained."""
    flat = device.show(artifact, 3, scale=0.5)
    predictor = Predictor(device.folder)
    assert predictor.version is None
    answers = predictor.predict(X)
    assert answers.dtype == np.float32
    assert np.array_equal(answers, expected(artifact, flat))
    assert predictor.version == VersionId(epoch=1, number=3, digest=b"\x03" * 16)
    assert predictor.predict(X[:1].reshape(1, 8, 8).tolist()).shape == (1, 10)


def test_a_batch_of_any_length_is_answered(device, artifact):
    """In pieces, so that memory stays bounded."""
    flat = device.show(artifact, 1)
    many = np.concatenate([X] * 4)
    answers = Predictor(device.folder).predict(many)
    assert np.allclose(answers, np.concatenate([expected(artifact, flat)] * 4), atol=1e-5)


def test_a_newer_version_is_taken_up_by_itself(device, artifact):
    """By the next call; the artifact stays open."""
    device.show(artifact, 1)
    predictor = Predictor(device.folder)
    predictor.predict(X)
    session = predictor._model.session
    flat = device.show(artifact, 2, scale=-1.0)
    assert np.array_equal(predictor.predict(X), expected(artifact, flat))
    assert predictor.version.number == 2
    assert predictor._model.session is session


def test_nothing_is_read_again_while_nothing_changes(device, artifact, monkeypatch):
    """A call costs one stat: an app may predict a hundred times a second."""
    device.show(artifact, 1)
    predictor = Predictor(device.folder)
    first = predictor.predict(X)
    shutil.rmtree(device.folder / "blobs")
    shutil.rmtree(device.folder / "artifacts")
    assert np.array_equal(predictor.predict(X), first)


def test_before_the_first_version_it_says_so_and_can_wait(device, artifact):
    """The app starts before the agent has downloaded anything."""
    predictor = Predictor(device.folder)
    with pytest.raises(ArtifactError, match=r"there is no model .*(?s:.*)wait\(timeout\)"):
        predictor.predict(X)
    assert not predictor.wait(0.01)
    later = threading.Thread(target=device.show, args=(artifact, 1))
    later.start()
    assert predictor.wait(60)
    later.join()
    assert predictor.version.number == 1
    assert predictor.wait(0.0)


def test_a_version_may_be_named(device, artifact):
    """None before it, none after it."""
    device.show(artifact, 1)
    predictor = Predictor(device.folder, version="1.2")
    with pytest.raises(ArtifactError, match=r"of version 1\.2 .*the newest is 1\.1"):
        predictor.predict(X)
    assert not predictor.wait(0.0)
    flat = device.show(artifact, 2, scale=0.5)
    assert predictor.wait(0.0)
    device.show(artifact, 3)
    assert np.array_equal(predictor.predict(X), expected(artifact, flat))
    with pytest.raises(ValueError, match="newest"):
        Predictor(device.folder, version="latest")


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path):
    """A wrong path must not look like a device without a model."""
    with pytest.raises(StorageError, match="no state folder"):
        Predictor(tmp_path / "nowhere")


@pytest.mark.parametrize("shape", [(64,), (3, 63), (0, 64), ()])
def test_a_batch_of_another_shape_is_named(device, artifact, shape):
    """One sample without its row is the most common mistake."""
    device.show(artifact, 1)
    with pytest.raises(LayoutError, match=r"\[rows, 64\]"):
        Predictor(device.folder).predict(np.zeros(shape, np.float32))


def test_an_artifact_of_weights_alone_cannot_predict(device, tmp_path):
    """Who trains with code of their own predicts with it too."""
    from models.build import wrap_weights

    artifact = wrap_weights({"w": np.zeros((2, 2), np.float32)}, out=tmp_path / "wrapped", name="mine")
    device.show(artifact, 1)
    with pytest.raises(ArtifactError, match="weights alone"):
        Predictor(device.folder).predict(np.zeros((1, 2)))


@pytest.mark.parametrize("damage", ["weights", "manifest", "graph", "notice", "personal"])
def test_what_is_damaged_is_not_used_and_an_older_model_goes_on(device, artifact, damage):
    """A new app gets an error that names the file; one that has a model keeps it."""
    device.show(artifact, 1)
    old = Predictor(device.folder)
    first = old.predict(X)
    device.show(artifact, 2, scale=0.5, state=pack_personal({"a": np.zeros(1, np.float32)}))
    notice = device.board._shown
    target = {
        "weights": device.folder / "blobs" / notice.weights,
        "manifest": device.folder / "artifacts" / notice.artifact / "manifest.json",
        "graph": device.folder / "artifacts" / notice.artifact / "infer.onnx",
        "notice": device.folder / "model.json",
        "personal": device.folder / "personal" / notice.personal,
    }[damage]
    spoilt = bytearray(target.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    target.write_bytes(spoilt[:-1] if damage == "notice" else spoilt)
    with pytest.raises((ArtifactError, StorageError)):
        Predictor(device.folder).predict(X)
    answers = old.predict(X)
    if damage in ("weights", "notice", "personal"):
        assert np.array_equal(answers, first)
        assert old.version.number == 1


def test_files_that_are_replaced_under_it_do_no_harm(device, artifact):
    """An agent on a fast link beside an app that opens and predicts all the time: every answer is that of a
    whole version, with up to two new ones while one is read."""
    known = {}
    for number in range(1, 4):
        known[number] = expected(artifact, device.show(artifact, number, scale=number / 4, keep=1))
    seen: set[int] = set()

    def judge(number: int, answers: np.ndarray) -> str:
        seen.add(number % 3)
        right = np.array_equal(answers, known[(number - 1) % 3 + 1])
        return "" if right else f"version {number} gives the answers of another"

    with App(device.folder, X, judge) as app:
        for number in range(4, 60):
            app.wait()
            device.show(artifact, number, scale=((number - 1) % 3 + 1) / 4, keep=1)
            if app.faults:
                break
    assert app.faults == []
    assert seen == {0, 1, 2}


@contextlib.contextmanager
def as_nobody(group: int):
    """Be another user, of a group, for a while."""
    groups = os.getgroups()
    os.setgroups([group])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_user_of_the_agents_group_may_predict_and_another_is_told_why_not(artifact):
    """Reading is enough: nothing is written, no lock is taken."""
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        group = 54321
        device = Device(Path(parent) / "state")
        flat = device.show(artifact, 1)
        for path in (device.folder, *device.folder.rglob("*")):
            os.chown(path, 0, group)
            os.chmod(path, 0o750 if path.is_dir() else 0o640)
        Predictor(device.folder).predict(X)  # all that is imported at first use, while we may
        with as_nobody(group):
            answers = Predictor(device.folder).predict(X)
            with pytest.raises(OSError, match="denied"):
                (device.folder / "mine").touch()
        assert np.array_equal(answers, expected(artifact, flat))
        with as_nobody(NOBODY), pytest.raises(StorageError, match=r"denied(?s:.*)group"):
            Predictor(device.folder).predict(X)


def test_what_the_board_writes_may_be_read_by_the_group_and_nobody_else(device, artifact):
    """Personal tensors were made from a person's samples."""
    state = pack_personal({"a": np.zeros(1, np.float32)})
    device.show(artifact, 1, state=state)
    for path in (device.folder / "model.json", device.folder / "personal" / artifact.digest.hex()):
        assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
