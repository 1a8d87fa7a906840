"""Jobs and results as frames: what goes in comes out, and nothing else is taken."""

import contextlib
import io
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.frames import MAX_FRAME_BYTES, pack_frame, read_frame
from edge_agent.jobs import JobFailed, Prepared, PrepareJob, Progress, Trained, Verified, VerifyJob
from fl_protocol.errors import MessageError

VALUES = [
    VerifyJob(envelope=b"e", context=b"c", trusted_keys=("ed25519:00", "ed25519:01")),
    PrepareJob(artifact_dir="/a", runtimes=("onnx", "numpy")),
    Verified(ok=True),
    Verified(ok=False, reason="no"),
    Prepared(runtime="numpy", skipped=("onnx: absent",)),
    Trained(
        update_id=b"u" * 16,
        payload=b"p" * 100_000,
        num_examples=3,
        steps_done=1,
        steps_planned=2,
        metrics={"before.loss": 0.1234567890123},
        runtime="onnx",
        cpu_s=0.5,
        training_cpu_s=0.25,
    ),
    JobFailed(reason="r", retryable=True),
    JobFailed(reason="r", retryable=False, told="t"),
    Progress(steps_done=1, steps_planned=9),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_frame_holds_its_value(value):
    """Every field of every kind."""
    assert read_frame(io.BytesIO(pack_frame(value)).read) == value


def test_a_training_job_survives_the_journey(train_job):
    """Plan and base are values of their own types again; numbers keep their precision."""
    job = train_job(trainer="a:B", trainer_path="/x")
    assert read_frame(io.BytesIO(pack_frame(job)).read) == job


def test_frames_follow_each_other_until_the_stream_ends():
    """The end between two frames is no error."""
    stream = io.BytesIO(b"".join(map(pack_frame, VALUES)))
    assert [read_frame(stream.read) for _ in VALUES] == VALUES
    assert read_frame(stream.read) is None


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 30])
def test_a_stream_that_ends_inside_a_frame_is_an_error(cut):
    """A worker that died while it wrote."""
    with pytest.raises(MessageError):
        read_frame(io.BytesIO(pack_frame(VALUES[0])[:cut]).read)


def test_a_frame_beyond_the_bound_is_refused_before_it_is_read():
    """Four damaged bytes must not ask for four gigabytes."""
    asked: list[int] = []

    def read(count: int) -> bytes:
        asked.append(count)
        return struct.pack("<I", MAX_FRAME_BYTES + 1)

    with pytest.raises(MessageError):
        read_frame(read)
    assert asked == [4]


@pytest.mark.parametrize(
    "body",
    [
        7,
        [],
        {},
        {"kind": "Nothing"},
        {"kind": ["Progress"]},
        {"kind": "Progress"},
        {"kind": "Progress", "other": 1},
        {"kind": "TrainJob"},
    ],
)
def test_a_body_of_no_kind_is_refused(body):
    """Missing, additional and unknown fields."""
    content = msgpack.packb(body)
    with pytest.raises(MessageError):
        read_frame(io.BytesIO(struct.pack("<I", len(content)) + content).read)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_frame_or_a_message_error(content):
    """What a crashing runtime leaves in the pipe never ends the supervisor's thread."""
    for framed in (content, struct.pack("<I", len(content)) + content):
        with contextlib.suppress(MessageError):
            read_frame(io.BytesIO(framed).read)
