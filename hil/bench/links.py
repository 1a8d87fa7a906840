"""What a bad link costs: a model goes down to one device and its update comes up, over every link profile.

The connection is reset every three seconds besides. A slow profile runs in a world that is some times as fast
(``LinkProfile.faster``), so that a run ends within a minute: what is lost at a reset stays in proportion.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker_coordinator.embedded_broker import EmbeddedBroker
from fl_io.broker_address import BrokerAddress
from fl_protocol.codec import codec_for, model_size
from fl_protocol.errors import LichenError
from hil.link import LinkEmulator
from hil.link_profile import load_profile
from hil.local_fleet import FleetOptions, LocalFleet
from models.runtime.artifact import TrainingArtifact

__all__ = ["FASTER", "links", "transfer"]

RESET_EVERY_S = 3.0
FASTER = {
    "lan": 1.0,
    "wifi": 1.0,
    "lte": 1.0,
    "nb-iot": 100.0,
    "satellite": 4.0,
    "commuter": 1.0,
    "basement": 1.0,
}
"""How many times as fast each profile's world runs."""
HIDDEN = 107_000
"""An MLP of 8 million parameters: 8 MB down at int8, 1 MB up at one bit."""
TIMEOUT_S = 300.0
_LOOK_EVERY_S = 0.05


def links(hidden: int = HIDDEN) -> Iterator[dict[str, Any]]:
    """The transfer over each profile in turn."""
    for profile in FASTER:
        yield transfer(profile, hidden=hidden)


def transfer(
    name: str,
    *,
    hidden: int,
    reset_every_s: float = RESET_EVERY_S,
    faster: float | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """One version: a real broker, coordinator and agent, the agent's connection through the link.

    ``down_ratio`` and ``up_ratio`` are the bytes that went onto the link (MQTT, what a reset lost and all
    repetition included) over the bytes of the model and of the update's payload; ``*_arrived`` leave out what
    was lost on the way.

    Raises:
        LichenError: no update was accepted within ``timeout_s``.
    """
    faster = faster or FASTER[name]
    profile = replace(load_profile(name).faster(faster), reset_every_s=reset_every_s)
    with tempfile.TemporaryDirectory() as folder:
        broker = EmbeddedBroker("auto", 0, Path(folder) / "broker").start()
        address = BrokerAddress.parse(broker.url)
        try:
            with LinkEmulator(profile, upstream=(address.host, address.port), seed=1) as link:
                options = FleetOptions(
                    devices=1,
                    versions=2,
                    runtime="numpy",
                    broker=broker.url,
                    hidden=hidden,
                    epochs=1,
                    batch_size=16,
                    settings={"buffer": {"size": 2, "flush_after_s": 0.0}, "plan": {"max_steps": 2}},
                    agent_settings={"": {"broker": f"mqtt://127.0.0.1:{link.port}"}},
                )
                fleet = LocalFleet(Path(folder) / "fleet", options)
                try:
                    return {"profile": name, "faster": faster, **_run(fleet, link, timeout_s)}
                finally:
                    fleet.stop()
        finally:
            broker.stop()


def _run(fleet: LocalFleet, link: LinkEmulator, timeout_s: float) -> dict[str, Any]:
    fleet.prepare()
    layout = TrainingArtifact.open(fleet.folder / "artifact").layout
    model, update = model_size(layout), codec_for(fleet.options.codec).largest(layout)
    fleet.start()
    began = time.monotonic()
    down = None
    while time.monotonic() - began < timeout_s:
        status = fleet.agent_status("dev-00")
        counts = link.counts
        updates = status.get("updates") or {}
        # The states between may be over before anybody looks; an update that was made stays one.
        if down is None and (status.get("state") in ("preparing", "training") or updates.get("created")):
            down = counts
        if updates.get("done") and down is not None:
            return {
                "model_bytes": model,
                "update_bytes": update,
                "down_ratio": round(down.sent_down / model, 3),
                "down_arrived": round(down.bytes_down / model, 3),
                "up_ratio": round(counts.sent_up / update, 3),
                "up_arrived": round(counts.bytes_up / update, 3),
                "connections": counts.connections,
                "resets": counts.resets,
                "seconds": round(time.monotonic() - began, 1),
            }
        if not fleet.coordinator.running:
            raise LichenError("the coordinator ended", hint=fleet.coordinator.last_words())
        time.sleep(_LOOK_EVERY_S)
    raise LichenError(
        f"no update within {timeout_s:.0f} s: {link.counts}", hint=fleet.agents["dev-00"].last_words()
    )
