"""What earlier releases said on the wire is read today, and means the same."""

import json
import tomllib

from fl_io.ed25519 import read_public_key, verifier
from fl_protocol.blob import BlobRef
from fl_protocol.presence import CoordinatorPresence, DeviceEvent, DevicePresence, GetRequest
from fl_protocol.receipt import Receipt
from fl_protocol.signed import TASK_CONTEXT, open_envelope
from fl_protocol.task import MAX_TASK_BYTES, TaskManifest
from fl_protocol.topics import BeginTopic, BlobTopic, DeviceTopic, FleetTopics, NamedTopic, ReceiptTopic
from fl_protocol.update import UpdateHeader


def test_every_message_is_read_and_packs_to_the_same_bytes(release, fleet):
    """Also the manifests' signatures hold. Of a header the same bytes matter most: an update's id is bound to
    them, so that an update which began under one release is the same update under the next."""
    device = tomllib.loads((fleet / "devices" / "dev-00" / "agent.toml").read_text())
    verify = verifier([read_public_key(key) for key in device["trusted_keys"]])
    topics = FleetTopics(device["fleet"])
    kinds = set()
    for text, payload in json.loads((release / "messages.json").read_text()):
        body, topic = bytes.fromhex(payload), topics.parse(text)
        match topic:
            case NamedTopic(kind="task"):
                manifest = TaskManifest.unpack(
                    open_envelope(TASK_CONTEXT, body, verify, limit=MAX_TASK_BYTES)
                )
                assert isinstance(manifest.weights, BlobRef)
                again = None
            case NamedTopic(kind="coordinator"):
                again = CoordinatorPresence.unpack(body).pack()
            case DeviceTopic(kind="state"):
                again = DevicePresence.unpack(body).pack()
            case DeviceTopic(kind="get"):
                again = GetRequest.unpack(body).pack()
            case DeviceTopic(kind="event"):
                again = DeviceEvent.unpack(body).pack()
            case BeginTopic():
                header, inline = UpdateHeader.unpack(body)
                again = header.pack(inline)
            case ReceiptTopic():
                again = Receipt.unpack(body).pack()
            case BlobTopic():
                again = None
        kinds.add(type(topic).__name__ + getattr(topic, "kind", ""))
        assert again in (None, body), text
    assert {
        "NamedTopictask",
        "NamedTopiccoordinator",
        "DeviceTopicstate",
        "BeginTopic",
        "ReceiptTopic",
    } <= kinds
