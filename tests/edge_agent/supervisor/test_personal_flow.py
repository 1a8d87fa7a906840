"""Personal tensors and the newest model, as the supervisor keeps and shows them: it never looks into them."""

import hashlib
import json

import pytest

from edge_agent.jobs import TrainJob
from edge_agent.model_notice import read_notice
from edge_agent.sealed import seal
from fl_protocol.errors import StorageError


def trainings(world) -> list[TrainJob]:
    return [job for job in world.script.jobs if isinstance(job, TrainJob)]


def shown(world) -> bytes:
    """The personal tensors that an app would read."""
    notice = read_notice(world.folder)
    return (world.folder / "personal" / notice.personal).read_bytes() if notice.personal else b""


def test_a_training_starts_from_what_the_last_one_left(world):
    """Over versions and restarts; it waits in the folder for apps too."""
    world.boot()
    for number in (1, 2):
        world.script.device_state = seal(b"state %d" % number)
        world.coordinator.publish_version(number)
        world.advance(1)
        assert shown(world) == world.script.device_state
    world.kill()
    world.boot()
    world.coordinator.publish_version(3)
    world.advance(1)
    assert [job.device_state for job in trainings(world)] == [b"", seal(b"state 1"), seal(b"state 2")]
    assert len(list((world.folder / "personal").iterdir())) == 1
    assert world.agent.status()["personal"] == {"bytes": len(seal(b"state 2"))}


def test_a_state_whose_update_was_not_kept_is_not_kept(world, monkeypatch):
    """The next training starts from the one before: both are made again together."""
    world.boot()
    world.script.device_state = seal(b"lost")

    def refuse(*_args, **_keywords):
        raise StorageError("the outbox: disk is full")

    monkeypatch.setattr(type(world.outbox), "put", refuse)
    world.coordinator.publish_version(1)
    world.advance(1)
    monkeypatch.undo()
    assert shown(world) == b""
    world.advance(300)
    assert [job.device_state for job in trainings(world)] == [b"", b""]
    assert shown(world) == seal(b"lost")


@pytest.mark.parametrize("copy_too", [False, True])
def test_a_damaged_state_is_set_aside_and_reported_and_training_goes_on(world, copy_too):
    """From the copy for apps, or where that is spoilt too from the artifact's own values."""
    world.boot()
    world.script.device_state = seal(b"good")
    world.coordinator.publish_version(1)
    world.advance(1)
    spoilt = b"LcnS" + bytes(40)
    world.outbox._db.execute("UPDATE device_states SET content = ?", (spoilt,))
    if copy_too:
        (world.folder / "personal" / read_notice(world.folder).personal).write_bytes(spoilt)
    world.script.device_state = seal(b"next")
    world.coordinator.publish_version(2)
    world.advance(1)
    assert [job.device_state for job in trainings(world)] == [b"", b"" if copy_too else seal(b"good")]
    [aside] = (world.folder / "quarantine").iterdir()
    assert aside.read_bytes() == spoilt
    assert "personal-state was damaged" in world.coordinator.events[-1].message
    assert shown(world) == seal(b"next")
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [1, 2]


@pytest.mark.parametrize("damage", [True, False])
def test_a_lost_outbox_does_not_cost_the_personal_tensors(world, damage):
    """They live on the device for ever: what apps predict with is still there to train from."""
    world.boot()
    world.script.device_state = seal(b"months of training")
    world.coordinator.publish_version(1)
    world.advance(1)
    world.shut_down()
    for companion in ("-wal", "-shm", ""):
        (world.folder / f"agent.db{companion}").unlink(missing_ok=True)
    if damage:
        (world.folder / "agent.db").write_bytes(b"no database" * 1000)
    world.boot()
    assert shown(world) == seal(b"months of training")
    world.coordinator.publish_version(2)
    world.advance(1)
    assert trainings(world)[-1].device_state == seal(b"months of training")


def test_what_a_crash_kept_from_being_shown_is_shown_by_the_next_life(world):
    """The outbox has it; the copy for apps is made again."""
    world.boot()
    world.script.device_state = seal(b"one")
    world.coordinator.publish_version(1)
    world.advance(1)
    artifact = world.outbox._db.execute("SELECT artifact FROM device_states").fetchone()[0]
    world.outbox._db.execute(
        "UPDATE device_states SET content = ? WHERE artifact = ?", (seal(b"two"), artifact)
    )
    world.kill()
    world.boot()
    assert shown(world) == seal(b"two")


def test_a_training_renews_the_personal_tensors_and_not_the_notice(world):
    """Written once for each version, when its files are here: an fsync less for the card. A life that begins
    with both as they should be writes neither."""
    world.boot()
    for number in (1, 2):
        world.script.device_state = seal(b"state %d" % number)
        world.script.hold = number == 2
        world.coordinator.publish_version(number)
        world.advance(1)
    notice = (world.folder / "model.json").stat()
    assert (read_notice(world.folder).version.number, shown(world)) == (2, seal(b"state 1"))
    world.worker.release()
    world.advance(1)
    assert shown(world) == seal(b"state 2")
    [copy] = (world.folder / "personal").iterdir()
    written = copy.stat()
    world.kill()
    world.boot()
    world.advance(1)
    assert (world.folder / "model.json").stat() == notice
    assert copy.stat().st_ino == written.st_ino


def test_a_folder_of_an_older_agent_goes_on(world):
    """There the notice names the personal file by the sha256 of its content: it is read where the outbox is
    lost, and renamed for apps."""
    world.boot()
    world.script.device_state = seal(b"months of training")
    world.coordinator.publish_version(1)
    world.advance(1)
    world.shut_down()
    for path in world.folder.glob("agent.db*"):
        path.unlink()
    name = hashlib.sha256(seal(b"months of training")).hexdigest()
    [copy] = (world.folder / "personal").iterdir()
    copy.rename(copy.with_name(name))
    path = world.folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "personal": name}))
    world.boot()
    world.advance(1)
    assert shown(world) == seal(b"months of training")
    assert [path.name for path in (world.folder / "personal").iterdir()] == [
        read_notice(world.folder).artifact
    ]
    world.coordinator.publish_version(2)
    world.advance(1)
    assert trainings(world)[-1].device_state == seal(b"months of training")


def test_another_artifact_is_offered_the_state(world):
    """Whether it fits is found out by who can read it."""
    world.boot()
    world.script.device_state = seal(b"one")
    world.coordinator.publish_version(1)
    world.advance(1)
    world.coordinator.artifact_name = "rebuilt"
    world.script.device_state = b""
    world.coordinator.publish_version(2)
    world.advance(1)
    assert trainings(world)[-1].device_state == seal(b"one")


def test_the_notice_names_files_that_are_here(world):
    """All of them, at any moment: while the next version is on its way too."""
    world.boot()
    task = world.coordinator.publish_version(1)
    world.advance(1)
    notice = read_notice(world.folder)
    assert (notice.version, notice.personal) == (task.version, "")
    for number in (2, 3, 4):
        # Not retained: the manifest arrives, what it names does not.
        world.coordinator.artifact_name = f"other-{number}"
        world.coordinator.publish_version(number, retain=False)
        world.advance(1)
        assert world.agent.state == "fetching"
        notice = read_notice(world.folder)
        assert (world.folder / "blobs" / notice.weights).exists()
        assert (world.folder / "artifacts" / notice.artifact / "manifest.json").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": 2}', b"\xff"])
def test_a_notice_that_cannot_be_read_is_written_again(world, content):
    """By the next version that is here."""
    world.boot()
    world.coordinator.publish_version(1)
    world.advance(1)
    world.shut_down()
    (world.folder / "model.json").write_bytes(content)
    world.boot()
    task = world.coordinator.publish_version(2)
    world.advance(1)
    assert read_notice(world.folder).version == task.version
    assert json.loads((world.folder / "model.json").read_text())["number"] == 2


def test_a_checkpoint_is_gone_when_the_update_is_in_the_outbox(world):
    """And not before."""
    world.script.hold = True
    world.boot()
    world.coordinator.publish_version(1)
    world.advance(1)
    [job] = trainings(world)
    assert job.checkpoint_every_s == world.configuration.worker.checkpoint_every_s
    (world.folder / "checkpoint").write_bytes(b"half-way")
    assert job.checkpoint_path == str(world.folder / "checkpoint")
    world.worker.cancel()
    world.advance(1)
    assert (world.folder / "checkpoint").exists()
    world.advance(100)
    world.worker.release()
    world.advance(1)
    assert not (world.folder / "checkpoint").exists()
