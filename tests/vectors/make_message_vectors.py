"""Make the frozen message vectors: ``python tests/vectors/make_message_vectors.py`` (not run by the tests).

Each file holds the cases of one kind: ``fields`` under the names of docs/protocol.md, and the bytes. In JSON,
octets are written ``hex:...``. A change of these files is a change of the protocol.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_io.ed25519 import public_key_text, signer, unsigned
from fl_protocol.blob import INLINE_CHUNKS, BlobRef
from fl_protocol.command import Command
from fl_protocol.layout import TensorLayout
from fl_protocol.plan import TrainingPlan
from fl_protocol.presence import CoordinatorPresence, DeviceEvent, DevicePresence, GetRequest
from fl_protocol.ranges import ByteRanges
from fl_protocol.receipt import REFUSALS, Receipt
from fl_protocol.signed import COMMAND_CONTEXT, TASK_CONTEXT, seal
from fl_protocol.task import Pacing, TaskManifest, participates
from fl_protocol.topics import FleetTopics, blob_name
from fl_protocol.update import UpdateHeader, update_hash
from fl_protocol.version import VersionId

FOLDER = Path(__file__).parent / "messages"
PRIVATE_KEY = bytes(range(32))
UPDATE_ID = bytes.fromhex("00112233445566778899aabbccddeeff")
TOPICS = FleetTopics("barn")
LAYOUT = TensorLayout.of([("hidden.weight", (32, 64)), ("hidden.bias", (32,)), ("scale", ())])
WITH_BUFFERS = TensorLayout.of(
    [*LAYOUT.entries, ("norm.mean", (32,), "buffer"), ("norm.var", (32,), "buffer")]
)
VERSION = VersionId(epoch=1, number=42, digest=hashlib.sha256(b"version 42").digest()[:16])
ZERO = VersionId(epoch=1, number=0, digest=bytes(16))


def content(size: int) -> bytes:
    """Bytes that are easy to make again: byte i is i * 31 mod 251."""
    return bytes(index * 31 % 251 for index in range(size))


def headers() -> dict[str, tuple[UpdateHeader, bytes | None]]:
    """Update headers, with and without payload."""
    payload = content(40)
    small = UpdateHeader(
        incarnation=bytes(range(8)),
        base=VERSION,
        codec="eden(bits=1)",
        size=len(payload),
        sha256=hashlib.sha256(payload).digest(),
        fingerprint=LAYOUT.fingerprint,
        num_examples=144,
        steps_done=25,
        steps_planned=25,
        metrics={
            "before.loss": 20.25,
            "before.correct": 31,
            "before.count": 36,
            "after.loss": 18.5,
            "after.correct": 32,
            "after.count": 36,
        },
        runtime="onnx",
    )
    leased = dataclasses.replace(
        small,
        base=VersionId(epoch=2, number=70_000, digest=VERSION.digest),
        codec="eden(bits=1,keep=0.25)",
        size=300_000,
        sha256=hashlib.sha256(content(300_000)).digest(),
        steps_done=0,
        kind="masked",
        lease=bytes(range(8, 16)),
        metrics={},
        runtime="",
    )
    return {
        "probe": (small, None),
        "with payload": (small, payload),
        "large, leased, of another kind": (leased, None),
    }


def receipts() -> dict[str, Receipt]:
    """One receipt of each state, and of each refusal."""
    word = {"epoch": 1, "term": 3}
    refused = {
        f"refused: {reason}": Receipt(state="refused", reason=reason, **word)  # type: ignore[arg-type]  # ints
        for reason in REFUSALS
    }
    return {
        "open, nothing here yet": Receipt(
            state="open", epoch=1, term=3, missing=ByteRanges.of([(0, 300_000)]), credit=262_144
        ),
        "open, two gaps": Receipt(
            state="open",
            epoch=1,
            term=3,
            missing=ByteRanges.of([(65_536, 131_072), (196_608, 300_000)]),
            credit=168_928,
        ),
        "later": Receipt(state="later", epoch=1, term=3, reason="busy", wait_s=2.0),
        "done": Receipt(state="done", epoch=1, term=3),
        **refused,
    }


def presences() -> dict[str, DevicePresence]:
    """Births and a farewell."""
    session = bytes(range(16, 24))
    return {
        "birth": DevicePresence(
            online=True,
            session=session,
            incarnation=bytes(range(8)),
            agent="0.1.0",
            runtimes=("onnx", "numpy"),
            samples=180,
            idle_reason="waiting for its start, drawn at random",
            seen=(1, 42),
        ),
        "birth with nothing to say": DevicePresence(online=True, session=session),
        "birth of a run of its own": DevicePresence(online=True, session=session, life=bytes(range(40, 44))),
        "farewell, and will": DevicePresence(online=False, session=session),
    }


def coordinators() -> dict[str, CoordinatorPresence]:
    """The coordinator's presence in all its uses."""
    session, probe = bytes(range(24, 32)), bytes(range(32, 40))
    return {
        "in office": CoordinatorPresence(
            session=session, epoch=1, term=3, marker=hashlib.sha256(b"inventory").digest()
        ),
        "challenge of a newcomer": CoordinatorPresence(session=probe, epoch=0, term=0, challenge=probe),
        "answer to it": CoordinatorPresence(session=session, epoch=1, term=3, challenge=probe),
        "rolled back": CoordinatorPresence(session=session, epoch=1, term=4, rolled_back=True),
    }


def commands() -> dict[str, Command]:
    """One command of each kind."""
    address = {"device": "pi-07", "term": 3}
    return {
        "train": Command(
            kind="train",
            device="pi-07",
            term=3,
            sequence=17,
            lease=bytes(range(8, 16)),
            version=VERSION,
            deadline_s=600.0,
        ),
        "pause": Command(kind="pause", sequence=18, **address),  # type: ignore[arg-type]  # str and int
        "resume": Command(kind="resume", sequence=19, **address),  # type: ignore[arg-type]  # str and int
        "restate": Command(kind="restate", sequence=20, **address),  # type: ignore[arg-type]  # str and int
        "restate with evidence": Command(kind="restate", device="pi-07", term=3, sequence=21, evidence=True),
    }


def gets() -> dict[str, GetRequest]:
    """Requests for the manifest and for a chunk."""
    blob = BlobRef.of(content(200_000))
    return {
        "the manifest": GetRequest(),
        "chunk 0": GetRequest(blob=blob_name(blob.address, blob.chunk_bytes)),
        "chunk 3": GetRequest(blob=blob_name(blob.address, blob.chunk_bytes), index=3),
    }


def events() -> dict[str, DeviceEvent]:
    """One event of each kind."""
    return {
        "error": DeviceEvent(kind="error", message="step.onnx: golden step differs by 0.1"),
        "command": DeviceEvent(kind="command", message="resume", numbers={"sequence": 19}),
        "counters": DeviceEvent(kind="counters", numbers={"ignored": 2, "load": 0.5}),
        "evidence": DeviceEvent(kind="evidence", proof=seal(TASK_CONTEXT, tasks()["small"].pack(), unsigned)),
    }


def tasks() -> dict[str, TaskManifest]:
    """Manifests with inline and with listed chunk hashes."""
    small = TaskManifest(
        fleet="barn",
        task="main",
        counter=42,
        term=3,
        version=VERSION,
        artifact=BlobRef.of(b'{"format": "lichen-artifact/1"}'),
        weights=BlobRef.of(content(2_500)),
        fingerprint=LAYOUT.fingerprint,
        plan=TrainingPlan(epochs=5, batch_size=32, lr=0.25, momentum=0.5),
        codec="eden(bits=1)",
        pacing=Pacing(participation=0.5, spread_s=30.0),
    )
    large = dataclasses.replace(
        small,
        counter=43,
        weights=blobs()["listed"].listed()[0],
        pacing=Pacing(by_lease=True),
        max_examples=5_000,
        minimum_agent="0.2.0",
        mirror="https://mirror.example/barn/",
    )
    rounds = dataclasses.replace(small, counter=44, pacing=Pacing(by_lease=True, horizon=0))
    return {"small": small, "large": large, "rounds": rounds}


def blobs() -> dict[str, BlobRef]:
    """References of every form; ``listed`` is the whole one, before it is cut down to travel."""
    return {
        "empty": BlobRef.of(b""),
        "one chunk": BlobRef.of(content(1_000)),
        "exactly one chunk": BlobRef.of(content(65_536)),
        "inline": BlobRef.of(content(200_000)),
        "listed": BlobRef.of(content((INLINE_CHUNKS + 1) * 4096), chunk_bytes=4096),
    }


def topics() -> list[Mapping[str, Any]]:
    """Every topic of the tree."""
    blob = BlobRef.of(content(200_000))
    name = blob_name(blob.address, blob.chunk_bytes)
    update = {"device": "pi-07", "update_id": UPDATE_ID}
    chunk = {"address": blob.address, "chunk_bytes": blob.chunk_bytes, "index": 3}
    return [
        {"kind": "coordinator", "topic": TOPICS.coordinator},
        {"kind": "task", "topic": TOPICS.task(), "task": "main"},
        {"kind": "blob", "topic": TOPICS.blob(name, 3), **chunk},
        {"kind": "begin", "topic": TOPICS.begin("pi-07", UPDATE_ID), **update},
        {"kind": "chunk", "topic": TOPICS.chunk("pi-07", UPDATE_ID, 65_536), **update, "offset": 65_536},
        {"kind": "get", "topic": TOPICS.get("pi-07"), "device": "pi-07"},
        {"kind": "event", "topic": TOPICS.event("pi-07"), "device": "pi-07"},
        {"kind": "state", "topic": TOPICS.state("pi-07"), "device": "pi-07"},
        {"kind": "receipt", "topic": TOPICS.receipt("pi-07", UPDATE_ID), **update},
        {"kind": "command", "topic": TOPICS.command("pi-07"), "device": "pi-07"},
        {"kind": "task_for", "topic": TOPICS.task_for("pi-07"), "device": "pi-07"},
        {"kind": "blob_for", "topic": TOPICS.blob_for("pi-07", name, 3), "device": "pi-07", **chunk},
    ]


def envelopes() -> list[Mapping[str, Any]]:
    """Signed and unsigned envelopes, under a fixed key."""
    sign = signer(PRIVATE_KEY)
    made = []
    for name, context, body in (
        ("task manifest", TASK_CONTEXT, tasks()["small"].pack()),
        ("command", COMMAND_CONTEXT, commands()["train"].pack()),
    ):
        key_id, signature = sign(context + b"\0" + body)
        fields = {"context": context.decode(), "key_id": key_id, "signature": signature, "body": body}
        made.append({"name": name, "fields": fields, "bytes": seal(context, body, sign)})
    body = commands()["pause"].pack()
    fields = {"context": COMMAND_CONTEXT.decode(), "key_id": b"", "signature": b"", "body": body}
    made.append({"name": "unsigned", "fields": fields, "bytes": seal(COMMAND_CONTEXT, body, unsigned)})
    return made


def draws() -> list[Mapping[str, Any]]:
    """Who participates."""
    cases = [(f"pi-{number:02}", VERSION, share) for number in range(12) for share in (0.25, 0.5)]
    cases += [("pi-07", ZERO, 0.5), ("pi-07", VERSION, 0.0), ("pi-07", VERSION, 1.0)]
    return [
        {
            "device": device,
            "digest": version.digest,
            "share": share,
            "draw": participates(device, version, share),
        }
        for device, version, share in cases
    ]


def messages(kind: str) -> dict[str, tuple[Any, bytes]]:
    """The objects of one kind of message, and their bytes."""
    if kind == "begin":
        return {
            name: ((header, payload), header.pack(payload)) for name, (header, payload) in headers().items()
        }
    makers = {
        "receipt": receipts,
        "state": presences,
        "coordinator": coordinators,
        "command": commands,
        "get": gets,
        "event": events,
        "task": tasks,
    }
    return {name: (message, message.pack()) for name, message in makers[kind]().items()}


MESSAGES = ("begin", "receipt", "state", "coordinator", "command", "get", "event", "task")


def plain(value: Any) -> Any:
    """A value as JSON shows it."""
    if isinstance(value, bytes):
        return f"hex:{value.hex()}"
    if isinstance(value, ByteRanges):
        return [list(pair) for pair in value]
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value


def render() -> dict[str, str]:
    """Every file's name and text."""
    files: dict[str, Any] = {}
    for kind in MESSAGES:
        cases = []
        for name, (message, packed) in messages(kind).items():
            if kind == "begin":
                header, payload = message
                fields = {**plain(header), "payload": plain(payload)}
            else:
                fields = plain(message)
            cases.append({"name": name, "fields": fields, "bytes": packed})
        files[kind] = {"kind": kind, "cases": cases}
    files["blob_ref"] = {"kind": "blob_ref", "cases": [_blob_case(*item) for item in blobs().items()]}
    files["topics"] = {"fleet": "barn", "cases": topics()}
    files["envelope"] = {"public_key": public_key_text(PRIVATE_KEY), "cases": envelopes()}
    files["participation"] = {"cases": draws()}
    files["layout"] = {"cases": [_layout_case(layout) for layout in (LAYOUT, WITH_BUFFERS)]}
    files["update_hash"] = {
        "update_id": UPDATE_ID,
        "cases": [
            {"header": header.pack(), "update_hash": update_hash(UPDATE_ID, header)}
            for header, _ in headers().values()
        ],
    }
    return {
        f"{name}.json": json.dumps(plain(body), indent=1, ensure_ascii=True) + "\n"
        for name, body in files.items()
    }


def _layout_case(layout: TensorLayout) -> Mapping[str, Any]:
    return {"tensors": layout.entries, "size": layout.size, "fingerprint": layout.fingerprint}


def _blob_case(name: str, ref: BlobRef) -> Mapping[str, Any]:
    """``content`` of ``size`` bytes, its reference as it travels, and the chunk list where it is a blob."""
    from fl_protocol.fields import pack

    travels, chunk_list = ref.listed()
    return {
        "name": name,
        "address": ref.address,
        "fields": travels,
        "chunk_list": chunk_list,
        "bytes": pack(travels.to_body()),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, text in render().items():
        (FOLDER / file_name).write_text(text)
