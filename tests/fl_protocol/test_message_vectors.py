"""The frozen vectors: our packing gives exactly these bytes, and reading them gives equal objects."""

import importlib.util
import json
from pathlib import Path

import pytest

from fl_protocol.blob import BlobRef
from fl_protocol.command import Command
from fl_protocol.fields import unpack
from fl_protocol.presence import CoordinatorPresence, DeviceEvent, DevicePresence, GetRequest
from fl_protocol.receipt import Receipt
from fl_protocol.task import TaskManifest
from fl_protocol.topics import FleetTopics
from fl_protocol.update import UpdateHeader, update_hash

VECTORS = Path(__file__).parents[1] / "vectors"
KINDS = {
    "receipt": Receipt,
    "state": DevicePresence,
    "coordinator": CoordinatorPresence,
    "command": Command,
    "get": GetRequest,
    "event": DeviceEvent,
    "task": TaskManifest,
    "begin": UpdateHeader,
}


@pytest.fixture(scope="module")
def maker():
    """The script that made the vectors."""
    spec = importlib.util.spec_from_file_location("make_vectors", VECTORS / "make_message_vectors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_packing_gives_exactly_the_frozen_bytes(maker):
    """A difference here is a change of the protocol: it needs a new root topic, not a new vector."""
    made = maker.render()
    assert sorted(made) == sorted(path.name for path in (VECTORS / "messages").iterdir())
    for name, text in made.items():
        assert text == (VECTORS / "messages" / name).read_text(), name


@pytest.mark.parametrize("kind", KINDS)
def test_reading_the_bytes_gives_equal_objects(maker, kind):
    """And those pack to the same bytes again."""
    for name, (message, packed) in maker.messages(kind).items():
        read = KINDS[kind].unpack(packed)
        assert read == message, name
        again = read[0].pack(read[1]) if kind == "begin" else read.pack()
        assert again == packed, name


def test_references_read_back(maker):
    """In the form in which they travel; a listed one is whole again with its list."""
    cases = json.loads((VECTORS / "messages" / "blob_ref.json").read_text())["cases"]
    for case in cases:
        whole = maker.blobs()[case["name"]]
        travels, chunk_list = whole.listed()
        read = BlobRef.from_body(unpack(bytes.fromhex(case["bytes"][4:]), limit=1 << 16))
        assert read == travels
        if chunk_list is not None:
            assert read.with_chunk_list(chunk_list) == whole


def test_topics_read_back():
    """Every topic of the vectors parses, and no two alike."""
    cases = json.loads((VECTORS / "messages" / "topics.json").read_text())["cases"]
    topics = FleetTopics("barn")
    parsed = [topics.parse(case["topic"]) for case in cases]
    assert len(set(parsed)) == len(cases) == 12


def test_the_hash_of_an_update_is_that_of_its_header_without_payload(maker):
    """A probe and the begin with payload are the same update."""
    (header, payload) = maker.headers()["with payload"]
    for packed in (header.pack(), header.pack(payload)):
        assert update_hash(maker.UPDATE_ID, UpdateHeader.unpack(packed)[0]) == update_hash(
            maker.UPDATE_ID, header
        )
