"""The schedule: which fault meets whom, when, for how long. A pure function of its arguments.

Kinds are dealt from a shuffled deck that holds each of them, and a new deck when it is used up: a run of two
minutes meets nearly everything once, and no seed tries one thing only.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fl_protocol.errors import ConfigError

__all__ = ["BROKER", "COORDINATOR", "KINDS", "Fault", "device_name", "draw_schedule"]

BROKER = "broker"
COORDINATOR = "coordinator"
FIRST_S = 6.0
"""The fleet may connect first."""
LEAST_GAP_S = 1.0
MEAN_GAP_S = 4.0
DAMAGES = ("flip", "block", "cut")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is drawn with a fault: whom it meets (``devices`` or a name), between how many seconds it lasts,
    its settings, and how many cards of the deck it has."""

    targets: Sequence[str] = ("devices",)
    lasting_s: tuple[float, float] = (0.0, 0.0)
    settings: Sequence[str] = ("",)
    cards: int = 1


def _damages(*files: str) -> tuple[str, ...]:
    return tuple(f"{how} {file}" for file in files for how in DAMAGES)


KINDS: dict[str, Kind] = {
    "kill_agent": Kind(cards=2),
    "kill_worker": Kind(cards=2),
    "pause_agent": Kind(lasting_s=(1, 20)),
    "fill_agent_disk": Kind(lasting_s=(2, 15)),
    "damage_agent": Kind(
        settings=_damages("outbox", "outbox", "wal", "samples", "identity", "blob", "artifact", "notice"),
        cards=2,
    ),
    "roll_back_agent": Kind(lasting_s=(5, 30)),
    "jump_agent_clock": Kind(lasting_s=(5, 20), settings=("-55", "-20", "+1", "+11", "+73")),
    "clone_agent": Kind(lasting_s=(5, 20)),
    "reset_link": Kind(targets=("devices", COORDINATOR), cards=2),
    "half_open_link": Kind(targets=("devices", COORDINATOR)),
    "black_out_link": Kind(targets=("devices", COORDINATOR), lasting_s=(2, 25)),
    "kill_coordinator": Kind(targets=(COORDINATOR,), cards=2),
    "pause_coordinator": Kind(targets=(COORDINATOR,), lasting_s=(1, 15)),
    "fill_coordinator_disk": Kind(targets=(COORDINATOR,), lasting_s=(2, 10)),
    "damage_coordinator": Kind(
        targets=(COORDINATOR,), settings=_damages("journal", "wal", "version", "blob", "key", "manifest")
    ),
    "roll_back_coordinator": Kind(
        targets=(COORDINATOR,), lasting_s=(5, 25), settings=("backup", "snapshot", "snapshot")
    ),
    "jump_coordinator_clock": Kind(
        targets=(COORDINATOR,), lasting_s=(5, 20), settings=("-55", "-20", "+1", "+73")
    ),
    "second_coordinator": Kind(
        targets=(COORDINATOR,), lasting_s=(6, 12), settings=("stranger", "twin", "heir", "usurper")
    ),
    "kill_broker": Kind(targets=(BROKER,), settings=("kept", "lost"), cards=2),
    "pause_broker": Kind(targets=(BROKER,), lasting_s=(1, 12)),
    "oversize_publishes": Kind(targets=(BROKER,), lasting_s=(3, 12), settings=("200", "700", "3000")),
    "denied_publishes": Kind(targets=(BROKER,), lasting_s=(3, 12), settings=("up", "down", "task")),
}
"""Every kind of fault by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """At ``second`` of the run, ``kind`` (of ``KINDS``) meets ``target``, and ends ``lasting_s`` later.

    ``setting`` says which way; ``salt`` seeds whatever else is chosen on the spot (which byte).
    """

    second: float
    kind: str
    target: str
    lasting_s: float = 0.0
    setting: str = ""
    salt: int = 0

    def __str__(self) -> str:
        lasting = f" for {self.lasting_s:.1f} s" if self.lasting_s else ""
        setting = f" ({self.setting})" if self.setting else ""
        return f"{self.second:6.1f} s  {self.target:<12} {self.kind}{setting}{lasting}"

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def device_name(number: int) -> str:
    """The name of the ``number``-th device of a local fleet."""
    return f"dev-{number:02d}"


def draw_schedule(
    *, seed: int, minutes: float, devices: int, kinds: Sequence[str] = tuple(KINDS)
) -> tuple[Fault, ...]:
    """The faults of a run, in their order.

    Raises:
        ConfigError: no kind of that name.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ConfigError(
            f"no fault is called {', '.join(unknown)!r}", hint=f"there are {', '.join(sorted(KINDS))}"
        )
    chance = random.Random(f"lichen chaos {seed}")
    names = [device_name(number) for number in range(devices)]
    faults: list[Fault] = []
    deck: list[str] = []
    second = FIRST_S
    while second < 60.0 * minutes:
        if not deck:
            deck = [name for name in kinds for _ in range(KINDS[name].cards)]
            chance.shuffle(deck)
        name = deck.pop()
        kind = KINDS[name]
        target = chance.choice(kind.targets)
        faults.append(
            Fault(
                second=round(second, 1),
                kind=name,
                target=chance.choice(names) if target == "devices" else target,
                lasting_s=round(chance.uniform(*kind.lasting_s), 1),
                setting=chance.choice(kind.settings),
                salt=chance.getrandbits(32),
            )
        )
        second += LEAST_GAP_S + chance.expovariate(1.0 / (MEAN_GAP_S - LEAST_GAP_S))
    return tuple(faults)
