"""The task manifest: what the fleet is asked to do now. Retained, signed, one per task.

(epoch, counter) orders manifests: a device acts on none that is older than one it has verified, whoever
signed it. ``term`` counts the coordinator's starts.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_protocol.blob import BlobRef
from fl_protocol.errors import MessageError
from fl_protocol.fields import Fields, pack, unpack
from fl_protocol.layout import FINGERPRINT_BYTES
from fl_protocol.plan import TrainingPlan
from fl_protocol.version import VersionId

__all__ = ["MAX_TASK_BYTES", "Pacing", "TaskManifest", "participates"]

MAX_TASK_BYTES = 16 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """Who trains on a version, and when.

    ``participation`` in (0, 1] is the share of devices that train on each version, drawn by hash;
    ``by_lease`` instead asks devices to wait for a ``train`` command. A device starts at a random moment
    within ``spread_s`` seconds, so that a retained manifest does not wake a fleet at once. ``horizon`` is how
    many versions ago an update that is taken may have begun; None does not say.
    """

    participation: float = 1.0
    spread_s: float = 0.0
    by_lease: bool = False
    horizon: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskManifest:
    """What the fleet is asked to do now.

    ``artifact`` refers to the artifact's ``manifest.json``, ``weights`` to the published weights of
    ``version`` (see ``encode_model``). ``max_examples`` caps what one update may count. ``denominator``
    names the rule the weights of an aggregate are divided by.
    """

    fleet: str
    task: str
    counter: int
    term: int
    version: VersionId
    artifact: BlobRef
    weights: BlobRef
    fingerprint: bytes
    plan: TrainingPlan
    codec: str
    pacing: Pacing
    max_examples: int = 100_000
    denominator: str = "examples"
    minimum_agent: str = "0.1.0"
    mirror: str | None = None

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, counter): a newer manifest has the greater one."""
        return self.version.epoch, self.counter

    def is_late(self, base: VersionId) -> bool:
        """Whether an update that began at ``base`` is refused as stale while this is the newest manifest.

        Of a base of another epoch only the coordinator knows.
        """
        horizon = self.pacing.horizon
        if horizon is None or base.epoch != self.version.epoch:
            return False
        return base.number < self.version.number - horizon

    def pack(self) -> bytes:
        """The body to be signed."""
        return pack(
            {
                "fleet": self.fleet,
                "task": self.task,
                "counter": self.counter,
                "term": self.term,
                "version": self.version.to_body(),
                "artifact": self.artifact.to_body(),
                "weights": self.weights.to_body(),
                "layout": self.fingerprint,
                "plan": self.plan.to_body(),
                "codec": self.codec,
                "pacing": _pacing_body(self.pacing),
                "max_examples": self.max_examples,
                "denominator": self.denominator,
                "agent": self.minimum_agent,
                "mirror": self.mirror,
            }
        )

    @classmethod
    def unpack(cls, body: bytes) -> "TaskManifest":
        """Read a manifest's body; raises MessageError. Says nothing about its signature."""
        fields = unpack(body, limit=MAX_TASK_BYTES)
        manifest = cls(
            fleet=fields.text("fleet", longest=64),
            task=fields.text("task", longest=64),
            counter=fields.integer("counter"),
            term=fields.integer("term"),
            version=VersionId.from_body(fields.group("version")),
            artifact=BlobRef.from_body(fields.group("artifact")),
            weights=BlobRef.from_body(fields.group("weights")),
            fingerprint=fields.octets("layout", length=FINGERPRINT_BYTES),
            plan=TrainingPlan.from_body(fields.group("plan")),
            codec=fields.text("codec", longest=96),
            pacing=_pacing(fields.group("pacing")),
            max_examples=fields.integer("max_examples", low=1),
            denominator=fields.text("denominator", longest=32),
            minimum_agent=fields.text("agent", longest=32),
            mirror=fields.maybe("mirror", lambda key: fields.text(key, longest=512)),
        )
        if manifest.denominator != "examples":
            raise MessageError(f"an unknown denominator rule {manifest.denominator!r}")
        return manifest


def participates(device: str, version: VersionId, share: float) -> bool:
    """Whether ``device`` trains on ``version`` when a ``share`` in [0, 1] of the fleet is asked to.

    A hash decides, so both sides know it without a message, and it differs from version to version.
    """
    if share >= 1.0:
        return True
    draw = hashlib.sha256(b"participate" + version.digest + device.encode()).digest()
    return int.from_bytes(draw[:8], "big") < share * 2.0**64


def _pacing_body(pacing: Pacing) -> Mapping[str, Any]:
    body = {"share": pacing.participation, "spread": pacing.spread_s, "lease": pacing.by_lease}
    return body if pacing.horizon is None else {**body, "horizon": pacing.horizon}


def _pacing(fields: Fields) -> Pacing:
    return Pacing(
        participation=fields.number("share", low=0.0, high=1.0),
        spread_s=fields.number("spread", low=0.0, high=86400.0),
        by_lease=fields.flag("lease"),
        horizon=fields.maybe("horizon", fields.integer),
    )
