"""A virtual fleet: coordinator, broker and devices in one process, on one clock that jumps."""

import contextlib
import gc
import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.assessment import Evaluate
from broker_coordinator.configuration import FleetConfiguration
from broker_coordinator.coordinator import Coordinator
from broker_coordinator.keys import KEY_FILE, open_key
from broker_coordinator.storage.sqlite_store import SqliteStore
from edge_agent.configuration import GateSettings
from edge_agent.limits import read_limits
from edge_agent.outbox_file import IN_MEMORY, OutboxFile
from edge_agent.trainer import Trainer
from fl_io.disk import RealDisk
from fl_protocol.errors import AggregatorError, ConfigError
from fl_protocol.loopback import Link
from fl_protocol.topics import FleetTopics
from hil.simulate.device import NoStatus, QuietMachine, VirtualDevice, agent_configuration
from hil.simulate.entropy import Entropy
from hil.simulate.machine import Battery, DeviceMachine
from hil.simulate.medium import Medium, MemoryMedium
from hil.simulate.memory_disk import Contents
from hil.simulate.refusals import Refusals
from hil.simulate.training import DeviceSamples, Trainings
from hil.simulate.transport import Caller, Meter
from hil.simulate.virtual_clock import BEGINS_AT
from models.runtime import TrainingArtifact

__all__ = ["DevicePlan", "Dropout", "Moment", "VirtualFleet", "rare_collections"]

COORDINATOR_TURN_S = 0.02
"""The coordinator commits what has come within this time together, as one does whose disk takes that long."""
COORDINATOR_WINDOW = 1 << 16
_RARE_COLLECTIONS = (50_000, 20, 200)
"""A fleet is millions of objects that stay: to look for garbage every 700 new ones costs a sixth, and to look
through all of them each time that there are a quarter more as much again; ``ended`` looks for what is left of
devices."""
_COLLECT_EVERY = 500
_TOGETHER = 256
"""Of all devices that do something at the same moment, so many do it before what they say is carried: what is
under way takes memory."""
LONGEST_GAP_S = 30 * 86400.0
"""A fleet that has nothing to do for so long will never have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """What a device is: its samples, seconds for a start and a step, its link, and when it has power:
    ``windows`` gives (on, off) in virtual seconds, ascending; None is always. Gates see a machine with
    ``memory_mb`` and ``battery``; a quiet one on mains where there is no ``memory_mb``."""

    samples: DeviceSamples
    step_s: float = 0.1
    start_s: float = 1.0
    link: Link | None = None
    windows: Iterator[tuple[float, float]] | None = None
    memory_mb: float | None = None
    battery: Battery | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropout:
    """How likely a training is to end with the device's power, which comes back after ``away_s``."""

    probability: float = 0.0
    away_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How far a run was when a version closed: virtual seconds, updates folded, and MQTT bytes so far."""

    version: int
    virtual_s: float
    updates: int
    bytes_up: int
    bytes_down: int


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Look for garbage seldom meanwhile: while a fleet is made, and while it runs."""
    thresholds = gc.get_threshold()
    gc.set_threshold(*_RARE_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


class UnsyncedDisk(RealDisk):
    """Files whose power is never cut."""

    def sync(self, path: Path) -> None:
        """Count it."""
        self.syncs += 1

    def sync_directory(self, path: Path) -> None:
        """Count it."""
        self.syncs += 1


class VirtualFleet:
    """Everything of one run. The coordinator's state is in the configuration's ``state``, a real folder.

    ``make_trainer`` wraps the trainer of a device; ``stacked`` is that of ``Trainings``. Messages
    go through ``medium``, which is closed with the fleet; without it through a broker in memory.
    """

    def __init__(
        self,
        configuration: FleetConfiguration,
        artifact: TrainingArtifact,
        plans: Iterable[DevicePlan],
        *,
        seed: int,
        runtimes: tuple[str, ...],
        evaluate: Evaluate | None = None,
        make_trainer: Callable[[Trainer | None, int], Trainer] | None = None,
        dropout: Dropout | None = None,
        stacked: bool = False,
        medium: Medium | None = None,
        gates: GateSettings | None = None,
    ) -> None:
        self.seed = seed
        self.configuration = configuration
        self.medium: Medium = medium or MemoryMedium(seed=seed)
        self.clock = self.medium.clock
        self.meter = Meter()
        self.contents = Contents()
        self.outboxes = OutboxFile(Path(IN_MEMORY))
        self.trainings = Trainings(
            artifact, clock=self.clock, runtimes=runtimes, stacked=stacked, graph_alone=make_trainer is None
        )
        self.machine = QuietMachine()
        self.limits = read_limits()
        self.status = NoStatus()
        self.history: list[Moment] = []
        self.turns = 0
        self._ended = 0
        self.encoded = 0
        self.payload_bytes = 0
        """Of the updates that the workers encoded."""
        self._make_trainer = make_trainer
        self._dropout = dropout
        self._dropping = random.Random(f"{seed} dropout")
        state = configuration.state
        state.mkdir(parents=True, exist_ok=True)
        (state / KEY_FILE).write_bytes(Entropy(seed, "coordinator key")(32))
        signing = open_key(state)
        self.agent_configuration = agent_configuration(
            configuration.fleet,
            runtime=self.trainings.prepared.runtime,
            public_key=signing.public_key,
            trainer=not self.trainings.prepared.runtime,
            gates=gates,
        )
        self.store = SqliteStore.open(state)
        self._turn_at = float("inf")
        self.coordinator = Coordinator(
            configuration,
            artifact=artifact,
            store=self.store,
            transport=self.medium.connection(
                Caller(
                    client_id=f"coordinator-{configuration.fleet}",
                    link=None,
                    woken=self._stir,
                    meter=Meter(),
                    clean=False,
                    manual_ack=True,
                    window=COORDINATOR_WINDOW,
                )
            ),
            clock=self.clock,
            signing=signing,
            evaluate=evaluate,
            disk=UnsyncedDisk(),
            entropy=Entropy(seed, "coordinator"),
            broker_name="in memory",
        )
        self.devices: list[VirtualDevice] = []
        for number, plan in enumerate(plans):
            device = VirtualDevice(
                self, number, plan.samples, step_s=plan.step_s, start_s=plan.start_s, link=plan.link
            )
            if plan.memory_mb is not None:
                device.machine = DeviceMachine(self.clock, memory_mb=plan.memory_mb, battery=plan.battery)
            self.devices.append(device)
            self._schedule(device, plan.windows)

    def trainer_of(self, number: int, graph: Trainer | None) -> Trainer:
        """What trains on a device; ``graph`` does so with the artifact's graph."""
        if self._make_trainer is not None:
            return self._make_trainer(graph, number)
        if graph is None:
            raise ConfigError(
                "the artifact holds weights alone", hint="give a trainer of your own: trainer = module:Class"
            )
        return graph

    def ended(self, device: VirtualDevice) -> None:
        """A device was switched off: what its agent was is garbage, in circles."""
        self._ended += 1
        if self._ended >= max(_COLLECT_EVERY, len(self.devices) // 10):
            self._ended = 0
            gc.collect()

    def begun(self, device: VirtualDevice, seconds: float) -> None:
        """A device begins a training that would take ``seconds``: perhaps it will not end it."""
        drops = self._dropout
        if drops is not None and self._dropping.random() < drops.probability:
            now = self.clock.monotonic()
            fails = now + seconds * self._dropping.random()
            self.clock.plan(fails, device.switch_off)
            self.clock.plan(fails + drops.away_s, device.come_back)

    def run(
        self,
        *,
        until_s: float = float("inf"),
        stop: Callable[["VirtualFleet"], bool] | None = None,
        after_turn: Callable[["VirtualFleet"], None] | None = None,
    ) -> None:
        """Go on until the coordinator is finished, ``stop`` says so, or virtual time ends.

        Raises:
            AggregatorError: the aggregation rule fails.
            ConfigError: updates are refused, one like the other; see ``Refusals``.
        """
        with rare_collections():
            self._run(until_s, stop, after_turn)

    def _run(
        self,
        until_s: float,
        stop: Callable[["VirtualFleet"], bool] | None,
        after_turn: Callable[["VirtualFleet"], None] | None,
    ) -> None:
        self.coordinator.start()
        self._stir()
        refusals = Refusals(len(self.devices))
        known = self.coordinator.version.number
        while not self.coordinator.finished:
            moved = self.medium.deliver_due() + self.clock.happen(_TOGETHER)
            while known < self.coordinator.version.number:  # several may close in one turn
                known += 1
                self._note(known)
            if after_turn is not None:
                after_turn(self)
            if stop is not None and stop(self):
                break
            refusals.look(self.clock.monotonic(), *self.coordinator.verdicts)
            if fault := self.coordinator.aggregator_fault:  # nobody mends it while this runs
                raise AggregatorError(fault)
            if moved:
                continue
            dues = [due for due in (self.medium.next_due(), self.clock.next_due()) if due is not None]
            now = self.clock.monotonic()
            if not dues or min(dues) > until_s or min(dues) > now + LONGEST_GAP_S:
                break
            self.clock.advance_to(min(dues))

    @property
    def devices_heard(self) -> int:
        """Devices of which an update was accepted and its receipt came back."""
        (count,) = self.outboxes.db.execute(
            "SELECT count(*) FROM totals WHERE outcome = 'done' AND count > 0"
        ).fetchone()
        return int(count)

    @property
    def outcomes(self) -> dict[str, int]:
        """Updates by what their outboxes say of them."""
        rows = self.outboxes.db.execute("SELECT outcome, sum(count) FROM totals GROUP BY outcome")
        return {outcome: int(count) for outcome, count in rows}

    def close(self) -> None:
        """End it; the coordinator's state stays."""
        try:
            self.medium.close(self._retained)
        finally:
            # They are in memory, and end here whatever SQLite says of it; the store is on a disk.
            with contextlib.suppress(sqlite3.Error):
                self.outboxes.close()
            self.store.close()

    def _retained(self) -> list[str]:
        """Topics that the coordinator may have left on its broker."""
        topics = FleetTopics(self.configuration.fleet)
        named = [topics.task(self.configuration.task), topics.coordinator]
        return [*(row.topic for row in self.store.inventory()), *named]

    def _note(self, version: int) -> None:
        record = self.store.version(version) or self.coordinator.version
        before = self.history[-1].updates if self.history else 0
        self.history.append(
            Moment(
                version=version,
                virtual_s=record.closed_at - BEGINS_AT,
                updates=before + record.updates,
                bytes_up=self.meter.up,
                bytes_down=self.meter.down,
            )
        )

    def _schedule(self, device: VirtualDevice, windows: Iterator[tuple[float, float]] | None) -> None:
        """Switch a device on and off, one window after the other."""
        if windows is None:
            device.has_power = True
            self.clock.plan(0.0, device.switch_on)
            return
        window = next(windows, None)
        if window is None:
            return
        on, off = window

        def end() -> None:
            device.has_power = False
            device.charging(on=False)
            device.switch_off()
            self._schedule(device, windows)

        def begin() -> None:
            device.has_power = True
            device.charging(on=True)
            device.switch_on()

        self.clock.plan(on, begin)
        if off < float("inf"):
            self.clock.plan(off, end)

    def _stir(self) -> None:
        """Something came for the coordinator."""
        self._plan_turn(self.clock.monotonic() + COORDINATOR_TURN_S)

    def _plan_turn(self, at: float) -> None:
        if at < self._turn_at:
            self._turn_at = at
            self.clock.plan(at, self._turn)

    def _turn(self) -> None:
        if self.clock.monotonic() < self._turn_at:
            return  # an earlier turn took its place
        self._turn_at = float("inf")
        self.turns += 1
        pause = self.coordinator.work()
        self._plan_turn(self.clock.monotonic() + max(pause, COORDINATOR_TURN_S))
