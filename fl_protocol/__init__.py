"""What both sides agree on: messages, topics, layouts, codecs, errors. Pure: no I/O, no threads, no clock.

Names are imported at first use; those of the codecs are in :mod:`fl_protocol.codec`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_protocol.artifact import ArtifactManifest, Input, Parameter
    from fl_protocol.blob import BlobRef
    from fl_protocol.clock import Clock, ManualClock
    from fl_protocol.command import Command
    from fl_protocol.errors import (
        ArtifactError,
        CodecError,
        ConfigError,
        LayoutError,
        LichenError,
        MessageError,
        ProtocolError,
        RuntimeUnavailable,
        SignatureError,
        StorageError,
        TopicError,
        TransportError,
    )
    from fl_protocol.layout import TensorLayout, TensorSpec
    from fl_protocol.loopback import Faults, LoopbackBroker, LoopbackTransport
    from fl_protocol.plan import TrainingPlan
    from fl_protocol.presence import CoordinatorPresence, DeviceEvent, DevicePresence, GetRequest
    from fl_protocol.ranges import ByteRanges
    from fl_protocol.receipt import Receipt
    from fl_protocol.signed import Sign, Verify, open_envelope, seal
    from fl_protocol.task import Pacing, TaskManifest
    from fl_protocol.topics import FleetTopics
    from fl_protocol.transport import (
        Connected,
        Delivered,
        Disconnected,
        Received,
        Traffic,
        Transport,
        TransportEvent,
        Will,
    )
    from fl_protocol.update import UpdateHeader
    from fl_protocol.version import VersionId

__all__ = [
    "ArtifactError",
    "ArtifactManifest",
    "BlobRef",
    "ByteRanges",
    "Clock",
    "CodecError",
    "Command",
    "ConfigError",
    "Connected",
    "CoordinatorPresence",
    "Delivered",
    "DeviceEvent",
    "DevicePresence",
    "Disconnected",
    "Faults",
    "FleetTopics",
    "GetRequest",
    "Input",
    "LayoutError",
    "LichenError",
    "LoopbackBroker",
    "LoopbackTransport",
    "ManualClock",
    "MessageError",
    "Pacing",
    "Parameter",
    "ProtocolError",
    "Receipt",
    "Received",
    "RuntimeUnavailable",
    "Sign",
    "SignatureError",
    "StorageError",
    "TaskManifest",
    "TensorLayout",
    "TensorSpec",
    "TopicError",
    "Traffic",
    "TrainingPlan",
    "Transport",
    "TransportError",
    "TransportEvent",
    "UpdateHeader",
    "Verify",
    "VersionId",
    "Will",
    "open_envelope",
    "seal",
]

_HOMES = {
    "ArtifactError": "errors",
    "ArtifactManifest": "artifact",
    "BlobRef": "blob",
    "ByteRanges": "ranges",
    "Clock": "clock",
    "CodecError": "errors",
    "Command": "command",
    "ConfigError": "errors",
    "Connected": "transport",
    "CoordinatorPresence": "presence",
    "Delivered": "transport",
    "DeviceEvent": "presence",
    "DevicePresence": "presence",
    "Disconnected": "transport",
    "Faults": "loopback",
    "FleetTopics": "topics",
    "GetRequest": "presence",
    "Input": "artifact",
    "LayoutError": "errors",
    "LichenError": "errors",
    "LoopbackBroker": "loopback",
    "LoopbackTransport": "loopback",
    "ManualClock": "clock",
    "MessageError": "errors",
    "Pacing": "task",
    "Parameter": "artifact",
    "ProtocolError": "errors",
    "Receipt": "receipt",
    "Received": "transport",
    "RuntimeUnavailable": "errors",
    "Sign": "signed",
    "SignatureError": "errors",
    "StorageError": "errors",
    "TaskManifest": "task",
    "TensorLayout": "layout",
    "TensorSpec": "layout",
    "TopicError": "errors",
    "Traffic": "transport",
    "TrainingPlan": "plan",
    "Transport": "transport",
    "TransportError": "errors",
    "TransportEvent": "transport",
    "UpdateHeader": "update",
    "Verify": "signed",
    "VersionId": "version",
    "Will": "transport",
    "open_envelope": "signed",
    "seal": "signed",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
