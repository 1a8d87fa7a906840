"""The personal tensors as apps read them: replaced by each training, while the notice stays as it is."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from shown_device import App, Device

import edge_agent.predictor
import fl_io.disk
from edge_agent.model_notice import NoticeBoard, read_notice
from edge_agent.personal import initial_personal, pack_personal
from edge_agent.predictor import Predictor
from fl_protocol.codec import decode_model, encode_model
from fl_protocol.errors import StorageError
from models.build import build_artifact
from models.runtime import RUNTIMES, TrainingArtifact, split_flat
from models.zoo import digits
from models.zoo.mlp import mlp

X = digits.load().x[:200]
CYCLE = 5
"""Versions, and trainings, until the numbers come again: more than may be confused."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> TrainingArtifact:
    """With a last layer of each device's own."""
    return _built(tmp_path_factory.mktemp("artifact") / "one", seed=0)


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path / "state")


def _built(out, seed):
    return build_artifact(
        mlp((64, 16, 10), seed=seed), loss="softmax_cross_entropy", personal=["layer2.*"], out=out
    )


def trained(artifact: TrainingArtifact, training: int) -> dict[str, np.ndarray]:
    """The personal tensors that a training leaves: the initial ones before the first."""
    factor = np.float32(1 + training % CYCLE)
    return {name: tensor * factor for name, tensor in initial_personal(artifact).items()}


def expected(artifact, flat, personal) -> np.ndarray:
    return RUNTIMES["numpy"].open(artifact).infer({**split_flat(flat, artifact.layout), **personal}, X)


def test_a_training_changes_what_is_predicted_and_leaves_the_notice_alone(device, artifact):
    """But for the first one, of which the notice has to say that there is something."""
    flat = device.show(artifact, 1)
    predictor = Predictor(device.folder)
    assert np.array_equal(predictor.predict(X), expected(artifact, flat, initial_personal(artifact)))
    device.board.renew(pack_personal(trained(artifact, 1)))
    assert np.array_equal(predictor.predict(X), expected(artifact, flat, trained(artifact, 1)))
    before = (device.folder / "model.json").stat()
    for training in (2, 3):
        device.board.renew(pack_personal(trained(artifact, training)))
        assert np.array_equal(predictor.predict(X), expected(artifact, flat, trained(artifact, training)))
    after = (device.folder / "model.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in (device.folder / "personal").iterdir()] == [artifact.digest.hex()]


def test_what_was_trained_is_read_once(device, artifact):
    """While neither file changes, none is read."""
    device.show(artifact, 1, state=pack_personal(trained(artifact, 1)))
    predictor = Predictor(device.folder)
    predictor.predict(X)
    model = predictor._model
    predictor.predict(X)
    assert predictor._model is model


def test_personal_tensors_of_a_later_version_are_not_merged_with_an_earlier_one(
    device, artifact, monkeypatch
):
    """The agent shows the next version and ends its training between an app's two reads: of the notice, and
    of the personal file."""
    device.show(artifact, 1, state=pack_personal(trained(artifact, 1)))
    flats = []

    def overtaken(folder):
        notice = read_notice(folder)
        if not flats:
            flats.append(device.show(artifact, 2, scale=0.5, state=pack_personal(trained(artifact, 1))))
            device.board.renew(pack_personal(trained(artifact, 2)))
        return notice

    monkeypatch.setattr(edge_agent.predictor, "read_notice", overtaken)
    predictor = Predictor(device.folder)
    answers = predictor.predict(X)
    assert predictor.version.number == 2
    assert np.array_equal(answers, expected(artifact, flats[0], trained(artifact, 2)))


def test_at_every_step_of_the_board_an_app_finds_what_was_before_or_what_is_after(
    device, artifact, tmp_path, monkeypatch
):
    """A new app and an old one look after each write, fsync and rename: of versions, of trainings, and of
    another artifact that is offered the state of the one before."""
    other = _built(tmp_path / "other", seed=1)
    right: list[np.ndarray] = []
    passed: list[str] = []
    keeps = Predictor(device.folder)

    def look(point: str) -> None:
        passed.append(point)
        for predictor in (keeps, Predictor(device.folder)) if len(right) == 2 else ():
            answers = predictor.predict(X)
            assert any(np.array_equal(answers, answer) for answer in right), point

    def expect(model: TrainingArtifact, scale: float, personal: dict[str, np.ndarray]) -> None:
        flat = model.initial_weights() * np.float32(scale)
        flat = decode_model(encode_model(flat, model.layout), model.layout)
        right[:] = [*right[-1:], expected(model, flat, personal)]

    monkeypatch.setattr(fl_io.disk, "crash_point", look)
    state = initial_personal(artifact)
    for number in range(1, 5):
        model = artifact if number < 3 else other
        packed = pack_personal(state) if number > 1 else b""
        expect(model, number / 4, state)
        device.show(model, number, scale=number / 4, state=packed)
        state = trained(model, number)
        expect(model, number / 4, state)
        device.board.renew(pack_personal(state))
        assert np.array_equal(keeps.predict(X), right[-1])
    # Four versions, and the first training with nothing there before; four trainings, one state offered.
    assert passed.count("agent.notice.renamed") == 5
    assert passed.count("agent.personal.renamed") == 5


def test_every_answer_is_of_a_version_and_of_the_training_on_it_or_before_it(device, artifact):
    """An agent that shows versions and trains on them, beside an app that opens and predicts all the time."""
    flats = {
        number: device.show(artifact, number, scale=number / 4, keep=1) for number in range(1, CYCLE + 1)
    }
    device.board.renew(pack_personal(trained(artifact, CYCLE)))
    known = {
        (number, training): expected(artifact, flat, trained(artifact, training))
        for number, flat in flats.items()
        for training in range(CYCLE)
    }
    seen: set[int] = set()

    def judge(number: int, answers: np.ndarray) -> str:
        shared = (number - 1) % CYCLE + 1
        for behind in (0, 1):
            if np.array_equal(answers, known[shared, (number - behind) % CYCLE]):
                seen.add(behind)
                return ""
        return f"version {number} gives answers with personal tensors that it never had"

    with App(device.folder, X, judge) as app:
        for number in range(CYCLE + 1, 60):
            app.wait()
            scale = ((number - 1) % CYCLE + 1) / 4
            state = pack_personal(trained(artifact, number - 1))
            device.show(artifact, number, scale=scale, state=state, keep=1)
            if number % 2:
                app.wait()
            device.board.renew(pack_personal(trained(artifact, number)))
            if app.faults:
                break
    assert app.faults == []
    assert seen == {0, 1}


def test_another_artifact_is_not_given_the_file_of_the_one_before(device, artifact, tmp_path):
    """Its own initial values are used where it was offered nothing; an app that knew the old one changes
    with it."""
    device.show(artifact, 1, state=pack_personal(trained(artifact, 1)))
    predictor = Predictor(device.folder)
    predictor.predict(X)
    other = _built(tmp_path / "other", seed=1)
    flat = device.show(other, 2)
    assert np.array_equal(predictor.predict(X), expected(other, flat, initial_personal(other)))
    assert list((device.folder / "personal").iterdir()) == []
    device.board.renew(pack_personal(trained(other, 2)))
    assert np.array_equal(predictor.predict(X), expected(other, flat, trained(other, 2)))


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_personal_file_that_cannot_be_read_is_named_and_made_again(device, artifact, harm):
    """No app goes on with the initial values as if nothing had been trained."""
    state = pack_personal(trained(artifact, 1))
    flat = device.show(artifact, 1, state=state)
    path = device.folder / "personal" / artifact.digest.hex()
    path.unlink() if harm == "gone" else path.write_bytes(state[:-1] + bytes([state[-1] ^ 1]))
    with pytest.raises(StorageError, match=path.name):
        Predictor(device.folder).predict(X)
    assert device.board.device_state(artifact.digest) == b""
    device.board.renew(state)
    answers = Predictor(device.folder).predict(X)
    assert np.array_equal(answers, expected(artifact, flat, trained(artifact, 1)))


def test_a_folder_in_which_the_notice_names_the_file_by_its_content_is_read_and_brought_up(device, artifact):
    """As agents left them before: apps read it, the board finds the state in it, and renews it."""
    state = pack_personal(trained(artifact, 1))
    flat = device.show(artifact, 1, state=state)
    notice = device.folder / "model.json"
    name = hashlib.sha256(state).hexdigest()
    (device.folder / "personal" / artifact.digest.hex()).rename(device.folder / "personal" / name)
    notice.write_text(json.dumps({**json.loads(notice.read_text()), "personal": name}))
    predictor = Predictor(device.folder)
    assert np.array_equal(predictor.predict(X), expected(artifact, flat, trained(artifact, 1)))
    board = NoticeBoard(device.folder, runtimes=("numpy",))
    assert board.device_state(artifact.digest) == state
    board.renew(state)
    assert [path.name for path in (device.folder / "personal").iterdir()] == [artifact.digest.hex()]
    assert read_notice(device.folder).personal == artifact.digest.hex()
    board.renew(pack_personal(trained(artifact, 2)))
    assert np.array_equal(predictor.predict(X), expected(artifact, flat, trained(artifact, 2)))
    shutil.rmtree(device.folder / "personal")
    assert board.device_state(artifact.digest) == b""
