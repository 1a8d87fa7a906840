"""The course of a run: the fleet starts, the schedule breaks it, it gets well, and its books are read."""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from broker_coordinator.books.audit import audit
from fl_protocol.errors import LichenError
from hil.chaos.books import Books, reckon
from hil.chaos.faults import FAULTS, Harm, NotHere
from hil.chaos.fleet import FLEET, ChaosFleet
from hil.chaos.operator import Operator
from hil.chaos.schedule import COORDINATOR, Fault
from hil.chaos.witness import Witness

__all__ = ["Course", "Moment"]

TURN_S = 0.1
START_S = 60.0
WELL_S = 400.0
"""Within so long after the last fault every device has a version that was made after it: its longest rests
are 240 s after a worker's third failure in a row, 120 s before it connects again."""
QUIET_S = 400.0
"""Within so long every outbox is empty, once nobody trains: a lost message is asked about after 60 s at
most, the next time after 120, then after 240."""
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How a run stands: seconds of it, faults done, the coordinator's newest version and what it accepted,
    devices on line."""

    seconds: float
    done: int
    phase: str
    version: int
    accepted: int
    online: int


class Course:
    """One run of a schedule. ``say`` takes a line at a time, ``show`` a moment now and then."""

    def __init__(
        self,
        fleet: ChaosFleet,
        witness: Witness,
        schedule: Sequence[Fault],
        *,
        seed: int,
        broker: str,
        say: Callable[[str], None],
        show: Callable[[Moment], None] = lambda moment: None,
    ) -> None:
        self._fleet, self._witness = fleet, witness
        self._schedule = schedule
        self._seed, self._broker = seed, broker
        self._say, self._show = say, show
        self._operator = Operator(fleet, witness)
        self._harm = Harm(fleet=fleet, witness=witness, operator=self._operator, say=self._whisper)
        self._done: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._words: list[str] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        self._began = time.monotonic()
        self._phase = "starting"

    def run(self) -> Books:
        """Run it all; takes the schedule's time and as long as the fleet needs to get well.

        Raises:
            LichenError: the fleet does not even start, or there is no backup where one is needed.
        """
        with self._witness.listening(self._fleet.broker.port, FLEET):
            self._begin()
            self._break()
            self._get_well()
            self._fall_silent()
        self._fleet.stop()
        return self._books()

    def _begin(self) -> None:
        for target in self._fleet.targets:
            self._fleet.start(target)
        self._wait("starting", START_S, lambda: self._version >= 1)
        if self._version < 1:
            raise LichenError("the fleet made no version", hint=f"see the logs in {self._fleet.out}")
        self._operator.back_up()
        self._began = time.monotonic()

    def _break(self) -> None:
        """Do every fault at its time, and end it at its own."""
        for fault in self._schedule:
            self._plan(fault.second, partial(self._do, fault))
        self._phase = "breaking"
        while self._agenda:
            while self._agenda and self._agenda[0][0] <= self._seconds:
                heapq.heappop(self._agenda)[2]()
            self._turn()

    def _plan(self, second: float, work: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._agenda, (second, self._planned, work))

    def _do(self, fault: Fault) -> None:
        self._words = []
        try:
            ending = FAULTS[fault.kind](self._harm, fault)
        except NotHere as reason:
            self._skipped[fault.kind] += 1
            self._say(f"{fault}: left out, {reason.args[0]}")
            return
        self._done[fault.kind] += 1
        self._witness.note("fault", **fault.to_json(), told=list(self._words))
        self._say(f"{fault}{''.join(f'; {word}' for word in self._words)}")
        if ending is not None:
            self._plan(self._seconds + fault.lasting_s, partial(self._end, fault, ending))

    def _end(self, fault: Fault, ending: Callable[[], None]) -> None:
        self._words = []
        ending()
        self._witness.note("ended", kind=fault.kind, target=fault.target, told=list(self._words))
        if self._words:
            self._say(
                f"{self._seconds:6.1f} s  {fault.target:<12} {fault.kind} ends: {'; '.join(self._words)}"
            )

    def _get_well(self) -> None:
        """Every device takes part again, by itself: one of its updates is done that was not before."""
        done: dict[str, int] = {}
        well: set[str] = set()

        def all_well() -> bool:
            if not self._in_office():
                return False
            for device in self._fleet.local.agents.keys() - well:
                status = self._device(device)
                count = status.get("updates", {}).get("done")
                if count is None:
                    continue
                done[device] = min(done.get(device, count), count)
                if count > done[device]:
                    well.add(device)
                elif "samples" in status["idle_reason"]:
                    self._operator.give_samples(device)
            return len(well) == len(self._fleet.local.agents)

        self._wait("getting well", WELL_S, all_well)
        for device in sorted(self._fleet.local.agents.keys() - well):
            reason = self._fleet.local.agent_status(device).get("idle_reason")
            self._wrong.append(f"{device} has not come back within {WELL_S:.0f} s: {reason}")

    def _fall_silent(self) -> None:
        """Nobody trains any more: what is in the outboxes comes in and is folded."""
        self._fleet.shut_gates()

        def silent() -> bool:
            status = self._fleet.local.status()
            if not self._in_office() or status["waiting"] or status["inbox"]:
                return False
            devices = [self._device(device) for device in self._fleet.local.agents]
            return all(status and status["connected"] and not status["outbox"]["count"] for status in devices)

        self._wait("falling silent", QUIET_S, silent)

    def _books(self) -> Books:
        self._phase = "reading the books"
        fleet, witness = self._fleet, self._witness
        outboxes = {device: witness.testify(device, fleet.folder(device)) for device in fleet.local.agents}
        own = audit(fleet.state)
        # Nothing that was done to a process excuses an error that it did not foresee.
        self._wrong += [
            f"{log.name} holds a traceback"
            for log in sorted((fleet.out / "fleet" / "logs").glob("*.log"))
            if _TRACEBACK in log.read_text(errors="replace")
        ]
        if not witness.given_up:
            # Then what devices were told and what the journal says must agree to the last update.
            sound = [fleet.folder(device) for device in fleet.local.agents.keys() - witness.suspects]
            self._wrong += [f"audit with agents: {fault}" for fault in audit(fleet.state, sound).faults]
        return reckon(
            witness,
            fleet.state,
            outboxes,
            own,
            sentences=self._wrong,
            seed=self._seed,
            broker=self._broker,
            faults=dict(sorted(self._done.items())),
            skipped=dict(sorted(self._skipped.items())),
            acts=tuple(self._operator.acts),
            exits=tuple(fleet.exits),
        )

    def _wait(self, phase: str, patience_s: float, done: Callable[[], bool]) -> None:
        self._phase = phase
        until = time.monotonic() + patience_s
        while not done() and time.monotonic() < until:
            self._turn()

    def _turn(self) -> None:
        self._fleet.attend()
        self._operator.attend()
        status = self._fleet.local.status()
        self._show(
            Moment(
                seconds=self._seconds,
                done=self._done.total(),
                phase=self._phase,
                version=status.get("version", 0),
                accepted=status.get("updates_accepted", 0),
                online=status.get("devices_online", 0),
            )
        )
        time.sleep(TURN_S)

    def _whisper(self, words: str) -> None:
        self._words.append(words)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def _version(self) -> int:
        return int(self._fleet.local.status().get("version", 0))

    def _in_office(self) -> bool:
        """Whether the coordinator that runs now serves."""
        process = self._fleet.process(COORDINATOR)
        status = self._fleet.local.status()
        return process.running and status.get("pid") == process.pid and status.get("state") == "running"

    def _device(self, device: str) -> dict[str, Any]:
        """The status of the agent that runs now; empty before its first."""
        status = self._fleet.local.agent_status(device)
        return status if status.get("pid") == self._fleet.process(device).pid else {}
