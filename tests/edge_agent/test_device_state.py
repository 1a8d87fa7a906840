"""Personal tensors on a device: kept with the update they go with, or not at all."""

import os
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from edge_agent.device_state import KEPT, DeviceState
from edge_agent.outbox import Outbox
from edge_agent.outbox_counts import read_counts
from edge_agent.outbox_file import _SCHEMA
from edge_agent.personal import initial_personal, pack_personal, personal_tensors
from fl_protocol.artifact import ArtifactManifest, Input, Parameter
from fl_protocol.blob import BlobRef
from fl_protocol.clock import ManualClock
from fl_protocol.errors import ArtifactError, LayoutError, StorageError
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId
from models.runtime import TrainingArtifact

PAYLOAD = bytes(range(250)) * 4


def update_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def header(number: int) -> UpdateHeader:
    return UpdateHeader(
        incarnation=b"i" * 8,
        base=VersionId(epoch=1, number=number, digest=bytes([number % 256]) * 16),
        codec="float32",
        size=len(PAYLOAD),
        sha256=b"h" * 32,
        fingerprint=b"f" * 8,
        num_examples=10,
        steps_done=5,
        steps_planned=5,
    )


def state(artifact: int, content: bytes = b"state") -> DeviceState:
    return DeviceState(artifact=bytes([artifact]) * 32, content=content)


@pytest.fixture
def make(tmp_path):
    """Open the outbox of this test; opening it again closes the one before."""
    opened: list[Outbox] = []

    def open_again() -> Outbox:
        while opened:
            opened.pop().close()
        opened.append(
            Outbox(tmp_path / "agent.db", max_bytes=1 << 20, max_age_s=1e6, clock=ManualClock(100.0))
        )
        return opened[0]

    yield open_again
    while opened:
        opened.pop().close()


def test_a_state_is_there_with_its_update(make):
    """After the file is opened again too; a newer one takes its place."""
    box = make()
    assert box.device_state(state(1).artifact) is None
    box.put(update_id(1), header(1), PAYLOAD, device_state=state(1))
    box = make()
    assert box.device_state(state(1).artifact) == state(1)
    box.put(update_id(2), header(2), PAYLOAD, device_state=state(1, b"newer state"))
    assert box.device_state(state(1).artifact) == state(1, b"newer state")
    assert box.counts().personal_bytes == len(b"newer state")
    assert read_counts(box._file.path) == box.counts()


def test_a_state_outlives_its_update(make):
    """It is the device's, whatever becomes of what was shared."""
    box = make()
    box.put(update_id(1), header(1), PAYLOAD, device_state=state(1))
    box.settle(update_id(1), "refused", "stale")
    assert box.device_state(state(1).artifact) == state(1)


def test_an_artifact_without_a_state_is_offered_the_newest(make):
    """Built again with another learning rate it is the same model."""
    box = make()
    box.put(update_id(1), header(1), PAYLOAD, device_state=state(1, b"one"))
    box.put(update_id(2), header(2), PAYLOAD, device_state=state(2, b"two"))
    assert box.device_state(state(3).artifact).content == b"two"
    assert box.device_state(state(1).artifact).content == b"one"


def test_the_oldest_states_are_forgotten(make):
    """As the artifacts they belong to are."""
    box = make()
    for number in range(1, 6):
        box.put(update_id(number), header(number), PAYLOAD, device_state=state(number))
    assert box._db.execute("SELECT count(*) FROM device_states").fetchone() == (KEPT,)
    box.drop_device_state(state(5).artifact)
    assert box.device_state(state(5).artifact) == state(4)


@pytest.mark.parametrize("table", ["outbox", "ledger", "device_states"])
def test_update_and_state_are_of_one_commit(make, table):
    """Whichever of them the disk refuses, none of them is there."""
    box = make()
    box.put(update_id(1), header(1), PAYLOAD, device_state=state(1, b"before"))
    box._db.execute(
        f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
    )
    with pytest.raises(StorageError, match="full"):
        box.put(update_id(2), header(2), PAYLOAD, device_state=state(1, b"after"))
    assert [entry.update_id for entry in box.entries()] == [update_id(1)]
    assert box.device_state(state(1).artifact).content == b"before"


_WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from test_device_state import PAYLOAD, header, update_id
from edge_agent.device_state import DeviceState
from edge_agent.outbox import Outbox
from fl_protocol.clock import ManualClock
box = Outbox(Path(sys.argv[1]), max_bytes=1 << 30, max_age_s=1e9, clock=ManualClock())
for number in range(1, 10_000):
    state = DeviceState(artifact=b"a" * 32, content=number.to_bytes(4, "big") * 3000)
    box.put(update_id(number), header(number), PAYLOAD, device_state=state)
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [3, 11, 20])
def test_kill_9_leaves_the_state_of_the_last_update_that_is_there(tmp_path, make, after):
    """Never the state of a training whose update is lost, nor the other way round."""
    path = tmp_path / "agent.db"
    folder = os.path.dirname(__file__)
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), folder], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer.stdout as said:
        while int(said.readline()) < after:
            pass
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
    box = make()
    newest = max(int.from_bytes(entry.update_id, "big") for entry in box.entries())
    assert newest >= after
    assert box.device_state(b"a" * 32).content == newest.to_bytes(4, "big") * 3000


def test_a_file_of_the_format_before_is_taken_over(make, tmp_path):
    """An update that waited through an upgrade of the agent still goes out."""
    db = sqlite3.connect(tmp_path / "agent.db")
    db.executescript(f"{_SCHEMA} PRAGMA application_id={0x4C696368}; PRAGMA user_version=1;")
    db.execute("INSERT INTO facts VALUES ('fact', ?)", (b"kept",))
    db.commit()
    db.close()
    assert read_counts(tmp_path / "agent.db").personal_bytes == 0
    box = make()
    assert box.recall("fact") == b"kept"
    box.put(update_id(1), header(1), PAYLOAD, device_state=state(1))
    assert make().device_state(state(1).artifact) == state(1)


def artifact(shapes: dict[str, tuple[int, ...]], *, values: float = 0.5) -> TrainingArtifact:
    """Weights alone: ``w`` is shared, the others are personal."""
    parameters = (
        Parameter(name="w", shape=(2,)),
        *(Parameter(name=name, shape=shape, role="personal") for name, shape in shapes.items()),
    )
    count = sum(int(np.prod(parameter.shape)) for parameter in parameters)
    content = np.full(count, values, "<f4").tobytes()
    manifest = ArtifactManifest(
        name="toy",
        loss="mse",
        metrics=(),
        optimizer="sgd",
        slots=(),
        hyper={},
        parameters=parameters,
        inputs=(Input(name="x", shape=(-1, 2), dtype="float32"),),
        files={"weights.bin": BlobRef.of(content)},
    )
    return TrainingArtifact.of(manifest, {"weights.bin": content})


def test_without_a_state_personal_tensors_are_as_the_artifact_has_them():
    """A device that never trained."""
    model = artifact({"head": (3,), "scale": ()})
    assert {name: tensor.tolist() for name, tensor in personal_tensors(model, b"").items()} == {
        "head": [0.5] * 3,
        "scale": 0.5,
    }
    assert personal_tensors(artifact({}), b"") == {}


def test_a_state_is_taken_where_names_and_shapes_agree():
    """And by any artifact where they do."""
    kept = {"head": np.arange(3, dtype=np.float32)}
    for model in (artifact({"head": (3,)}), artifact({"head": (3,)}, values=9.0)):
        found = personal_tensors(model, pack_personal(kept))
        assert np.array_equal(found["head"], kept["head"])
    for other in ({"head": (4,)}, {"tail": (3,)}, {"head": (3,), "tail": (1,)}):
        with pytest.raises(LayoutError, match="personal"):
            personal_tensors(artifact(other), pack_personal(kept))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_used(value):
    """It would spoil every training after it."""
    with pytest.raises(StorageError, match="finite"):
        personal_tensors(artifact({"head": (1,)}), pack_personal({"head": np.array([value], np.float32)}))


def test_more_personal_tensors_than_a_device_keeps_are_refused():
    """Before anything is trained."""
    with pytest.raises(ArtifactError, match="personal"):
        initial_personal(artifact({"head": (1 << 23,)}))
