"""A virtual device: the agent's own supervisor, outbox and files, switched on and off on a virtual clock."""

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.configuration import AgentConfiguration, GateSettings
from edge_agent.gates import Machine
from edge_agent.jobs import Deliver, Result, Trained, TrainJob
from edge_agent.outbox import Outbox
from edge_agent.presence import Presence
from edge_agent.state_folder import StateFolder
from edge_agent.supervisor import Supervisor
from edge_agent.trainer import planned_steps
from fl_protocol.loopback import Link
from fl_protocol.topics import FleetTopics
from hil.simulate.entropy import Entropy, SeededChance
from hil.simulate.machine import Battery, DeviceMachine
from hil.simulate.medium import Connection
from hil.simulate.memory_disk import MemoryDisk
from hil.simulate.training import DeviceSamples, VirtualWorker
from hil.simulate.transport import Caller

if TYPE_CHECKING:
    from hil.simulate.fleet import VirtualFleet

__all__ = ["DEVICE_FOLDER", "NoStatus", "QuietMachine", "VirtualDevice", "agent_configuration"]

DEVICE_FOLDER = Path("/device")
"""Every device has a disk of its own, on which its state is here."""
TURN_S = 0.05
"""A device looks at what came this long after the first of it."""


class VirtualDevice:
    """One device of a ``VirtualFleet``: a training takes it ``start_s`` and ``step_s`` for each step.

    Off, it keeps its disk and its box in the outbox file, and nothing else, as a machine without power does.
    """

    __slots__ = (
        "_clock",
        "_entropy",
        "_fleet",
        "_incarnation",
        "_link",
        "_off",
        "_outbox",
        "_planned",
        "_start_s",
        "_step_s",
        "_supervisor",
        "_transport",
        "_wake_at",
        "disk",
        "has_power",
        "losses",
        "machine",
        "name",
        "number",
        "samples",
    )

    def __init__(
        self,
        fleet: "VirtualFleet",
        number: int,
        samples: DeviceSamples,
        *,
        step_s: float,
        start_s: float,
        link: Link | None,
    ) -> None:
        self.number = number
        self.name = f"dev-{number:06d}"
        self.samples = samples
        self.has_power = False
        """Whether its availability says that it may be on."""
        self.losses = 0
        """Trainings that ended with the power."""
        self.machine: Machine = fleet.machine
        """What its gates are told by."""
        self._fleet = fleet
        self._clock = fleet.clock
        self._link = link
        self._step_s, self._start_s = step_s, start_s
        self.disk = MemoryDisk(fleet.contents)
        """What it keeps, on or off."""
        self._entropy = Entropy(fleet.seed, self.name)
        self._incarnation = b""
        self._supervisor: Supervisor | None = None
        self._transport: Connection | None = None
        self._outbox: Outbox | None = None
        self._wake_at = float("inf")
        self._planned: tuple[float, ...] = ()
        """When turns are planned, the next one last: one that is due later takes the place of none before."""

    @property
    def on(self) -> bool:
        """Whether it has power."""
        return self._supervisor is not None

    @property
    def incarnation(self) -> bytes:
        """The name of its state folder, as updates carry it; empty while it is off."""
        return self._incarnation if self._supervisor is not None else b""

    def switch_on(self) -> None:
        """Boot: make the supervisor on what the disk and the outbox hold, and let it connect."""
        if self._supervisor is not None:
            return
        fleet = self._fleet
        configuration = replace(fleet.agent_configuration, device=self.name)
        presence = Presence(FleetTopics.of(configuration.fleet), self.name, entropy=self._entropy)
        folder = StateFolder(DEVICE_FOLDER, disk=self.disk, entropy=self._entropy)
        self._incarnation = folder.incarnation
        self._outbox = Outbox(
            fleet.outboxes,
            max_bytes=configuration.outbox.max_bytes,
            max_age_s=configuration.outbox.max_age_s,
            clock=self._clock,
            box=self.number,
        )
        self._transport = fleet.medium.connection(
            Caller(
                client_id=self.name,
                will=presence.will,
                link=self._link,
                woken=self._stir,
                meter=fleet.meter,
            )
        )
        self._supervisor = Supervisor(
            configuration,
            transport=self._transport,
            presence=presence,
            clock=self._clock,
            folder=folder,
            outbox=self._outbox,
            make_worker=self._worker,
            machine=self.machine,
            limits=fleet.limits,
            disk=self.disk,
            count=self._count,
            status=fleet.status,
            chance=SeededChance(fleet.seed, self.name),
            entropy=self._entropy,
        )
        self._supervisor.start()
        self._stir()

    def switch_off(self) -> None:
        """Take the power away, in the middle of whatever it does."""
        if self._supervisor is None or self._transport is None:
            return
        if self._supervisor.state == "training":
            self.losses += 1
            self._fleet.trainings.forget(self.number)
            self._trains(0.0)
        transport, self._transport, self._supervisor, self._outbox = self._transport, None, None, None
        self._wake_at = float("inf")
        transport.drop("the power is gone")
        transport.stop()
        self._fleet.ended(self)

    def charging(self, *, on: bool) -> None:
        """Its window begins or ends: perhaps a battery charges from now on, or does no more."""
        if (battery := self._battery) is not None:
            battery.switched(self._clock.monotonic(), on=on)

    def come_back(self) -> None:
        """Boot again after a failure, if there is power."""
        if self.has_power:
            self.switch_on()

    def _stir(self) -> None:
        """Something came: look at it soon. Without power nobody does, nor at the connection's end."""
        if self._supervisor is not None:
            self._wake(self._clock.monotonic() + TURN_S)

    def _wake(self, at: float) -> None:
        if at < self._wake_at:
            self._wake_at = at
            self._plan_turn()

    def _plan_turn(self) -> None:
        """Plan a turn for the time it is to wake at, unless one is planned before: that one plans anew."""
        if self._wake_at < (self._planned[-1] if self._planned else math.inf):
            self._planned = (*self._planned, self._wake_at)
            self._clock.plan(self._wake_at, self._turn)

    def _turn(self) -> None:
        self._planned = self._planned[:-1]
        if self._supervisor is None:
            return
        if self._clock.monotonic() < self._wake_at:
            self._plan_turn()
            return
        self._wake_at = float("inf")
        wait = self._supervisor.work()
        self._wake(self._clock.monotonic() + max(wait, TURN_S))

    @property
    def _battery(self) -> Battery | None:
        return self.machine.cells if isinstance(self.machine, DeviceMachine) else None

    def _trains(self, seconds: float) -> None:
        if (battery := self._battery) is not None:
            battery.trains(self._clock.monotonic(), seconds)

    def _worker(self, deliver: Deliver) -> VirtualWorker:
        return VirtualWorker(deliver, trainings=self._fleet.trainings, of=self)

    def begin(self, job: TrainJob, end: Callable[[TrainJob], None]) -> None:
        """See ``Apprentice``."""
        steps = min(planned_steps(job.plan, self.samples.training), self._most_steps(job))
        published = self.disk.read(_path(job.weights_path))
        self._fleet.trainings.begin(self.number, job, published, self.samples, self._most_steps(job))
        seconds = self._start_s + steps * self._step_s
        self._trains(seconds)
        self._fleet.begun(self, seconds)
        over = functools.partial(self._over, self._supervisor, job, end)
        self._clock.plan(self._clock.monotonic() + seconds, over)

    def _most_steps(self, job: TrainJob) -> int:
        """Steps that this device begins before the plan's time is over."""
        return math.ceil(job.plan.deadline_s / self._step_s) if self._step_s else sys.maxsize

    def _over(self, supervisor: Supervisor | None, job: TrainJob, end: Callable[[TrainJob], None]) -> None:
        """The time of a training is over; it was another life's, if the power failed meanwhile."""
        if self._supervisor is supervisor:
            end(job)
            self._stir()

    def ended(self, job: TrainJob) -> None:
        """See ``Apprentice``."""
        self._trains(0.0)

    def train(self, job: TrainJob) -> Result:
        """See ``Apprentice``."""
        fleet = self._fleet
        published = self.disk.read(_path(job.weights_path))
        result = fleet.trainings.train(
            self.number,
            job,
            published,
            self.samples,
            functools.partial(fleet.trainer_of, self.number),
            most_steps=self._most_steps(job),
        )
        if isinstance(result, Trained):
            fleet.encoded += 1
            fleet.payload_bytes += len(result.payload)
        return result

    def _count(self, _: Path) -> tuple[int, int]:
        return self.samples.training, self.samples.held_out


_path = functools.lru_cache(maxsize=16)(Path)


class NoStatus:
    """A status that nobody reads."""

    def write(self, status: Callable[[], Any], *, at_once: bool = False) -> float | None:
        """Ask for nothing."""
        return None


class QuietMachine:
    """A machine on mains that is cool and idle: what virtual devices lack is said by their availability."""

    def on_mains(self) -> bool | None:
        """It does not tell."""
        return None

    def temperature_c(self) -> float | None:
        """It does not tell."""
        return None

    def load(self) -> float | None:
        """It does not tell."""
        return None

    def free_memory_mb(self) -> float | None:
        """It does not tell."""
        return None

    def battery(self) -> float | None:
        """It does not tell."""
        return None


def agent_configuration(
    fleet: str, *, runtime: str, public_key: str, trainer: bool, gates: GateSettings | None = None
) -> AgentConfiguration:
    """What every device's ``agent.toml`` would say; each has a name of its own."""
    return AgentConfiguration(
        device="dev",
        fleet=fleet,
        broker="mqtt://127.0.0.1",
        state=DEVICE_FOLDER,
        trusted_keys=(public_key,),
        runtimes=(runtime,) if runtime else ("onnx",),
        trainer="simulated:Trainer" if trainer else "",
        gates=gates or GateSettings(),
    )
