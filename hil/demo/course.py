"""The course of a demo: what the coordinator and the agents say, sampled while they run."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fl_protocol.errors import LichenError
from hil.local_fleet import LocalFleet

__all__ = ["Moment", "follow"]

INTERVAL_S = 0.25
QUIET_S = 60.0
"""A demo whose fleet shows no new version or update for so long has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The fleet at one moment. ``metrics`` are those of the newest evaluation, empty before the first;
    ``reported`` are the devices' own, where the coordinator's have a caveat. ``bytes_up`` counts all MQTT
    bytes that the agents have sent, at their sockets."""

    seconds: float
    version: int
    metrics: Mapping[str, float]
    devices_online: int
    updates: int
    refused: int
    bytes_up: int
    bytes_down: int
    reported: Mapping[str, float] = field(default_factory=dict)


def follow(fleet: LocalFleet) -> Iterator[Moment]:
    """Yield a moment each quarter of a second until the coordinator has ended by itself.

    Raises:
        LichenError: a process died, or nothing moves for 60 s; with the end of the log concerned.
    """
    started = moved = time.monotonic()
    last = (-1, -1)
    while True:
        ended = not fleet.coordinator.running
        moment = _look(fleet, time.monotonic() - started)
        yield moment
        if ended:
            if fleet.coordinator.exit_code != 0:
                raise _failure(f"the coordinator ended with {fleet.coordinator.exit_code}", fleet)
            return
        if (moment.version, moment.updates) != last:
            last, moved = (moment.version, moment.updates), time.monotonic()
        if time.monotonic() - moved > QUIET_S:
            raise _failure(f"nothing has moved for {QUIET_S:.0f} s", fleet)
        time.sleep(INTERVAL_S)


def _look(fleet: LocalFleet, seconds: float) -> Moment:
    status = fleet.status()
    agents = [fleet.agent_status(device) for device in fleet.agents]
    return Moment(
        seconds=seconds,
        version=int(status.get("version") or 0),
        metrics=status.get("metrics") or {},
        devices_online=int(status.get("devices_online") or 0),
        updates=int(status.get("updates_accepted") or 0),
        refused=sum((status.get("refused") or {}).values()),
        bytes_up=sum(int(agent.get("bytes_sent") or 0) for agent in agents),
        bytes_down=sum(int(agent.get("bytes_received") or 0) for agent in agents),
        reported=(status.get("reported") or {}).get("means") or {},
    )


def _failure(what: str, fleet: LocalFleet) -> LichenError:
    dead = [agent for agent in fleet.agents.values() if not agent.running]
    suspect = dead[0] if dead and fleet.coordinator.running else fleet.coordinator
    return LichenError(
        f"{what}; the last lines of {suspect.log}:\n{suspect.last_words()}",
        hint=f"all logs are in {suspect.log.parent}",
    )
