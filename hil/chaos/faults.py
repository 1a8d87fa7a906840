"""The faults: one function for each kind of ``schedule.KINDS``.

Each does its harm and returns what ends it, or None where there is nothing to end; what it did goes to
``harm.say``. A store is read by the witness before it is touched.
"""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from broker_coordinator.books.audit import audit
from fl_protocol.errors import LichenError
from hil.chaos.damage import AGENT_FILES, COORDINATOR_FILES, damage, pick
from hil.chaos.fleet import FILLER, ChaosFleet
from hil.chaos.operator import Operator
from hil.chaos.schedule import COORDINATOR, KINDS, Fault
from hil.chaos.witness import Witness, rows_of
from hil.processes import ManagedProcess, children

__all__ = ["FAULTS", "Harm", "NotHere"]

Ending = Callable[[], None]
Work = TypeVar("Work", bound="Callable[[Harm, Fault], Ending | None]")
_FILL_BYTES = 1 << 16


class NotHere(LichenError):
    """This fault cannot be done on this machine, or finds nothing to harm just now."""


@dataclass(slots=True, kw_only=True)
class Harm:
    """What faults work on."""

    fleet: ChaosFleet
    witness: Witness
    operator: Operator
    say: Callable[[str], None]
    count: int = 0
    """Numbers copies and clones."""

    def name(self, stem: str) -> str:
        """A new name."""
        self.count += 1
        return f"{stem}-{self.count}"


FAULTS: dict[str, Callable[[Harm, Fault], Ending | None]] = {}


def _fault(work: Work) -> Work:
    FAULTS[work.__name__] = work
    return work


# Processes


@_fault
def kill_agent(harm: Harm, fault: Fault) -> None:
    """kill -9 of an agent; its worker goes with it."""
    harm.fleet.kill(fault.target)


@_fault
def kill_coordinator(harm: Harm, fault: Fault) -> None:
    """kill -9 of the coordinator."""
    harm.fleet.kill(fault.target)


@_fault
def kill_worker(harm: Harm, fault: Fault) -> None:
    """kill -9 of whatever process an agent has employed; of another one's, where it has none now."""
    order = [fault.target, *harm.fleet.local.agents]
    for device in order:
        workers = children(harm.fleet.process(device).pid)
        if workers:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            harm.say(f"{len(workers)} of {device}")
            return
    raise NotHere("no agent has a worker now")


@_fault
def pause_agent(harm: Harm, fault: Fault) -> Ending:
    """SIGSTOP, and SIGCONT."""
    harm.fleet.pause(fault.target)
    return lambda: harm.fleet.resume(fault.target)


@_fault
def pause_coordinator(harm: Harm, fault: Fault) -> Ending:
    """SIGSTOP, and SIGCONT."""
    return pause_agent(harm, fault)


# Disks


@_fault
def fill_agent_disk(harm: Harm, fault: Fault) -> Ending:
    """Not a byte is left on the disk of the state folder, until it is."""
    folder = harm.fleet.folder(fault.target)
    if folder not in harm.fleet.mounts:
        raise NotHere("a disk of its own needs root")
    size = 0
    with contextlib.suppress(OSError), (folder / FILLER).open("ab", buffering=0) as filler:
        while True:
            size += filler.write(bytes(_FILL_BYTES))
    with contextlib.suppress(OSError), (folder / FILLER).open("ab", buffering=0) as filler:
        while True:
            size += filler.write(bytes(1 << 9))
    harm.say(f"{size >> 10} KiB")
    return lambda: (folder / FILLER).unlink(missing_ok=True)


@_fault
def fill_coordinator_disk(harm: Harm, fault: Fault) -> Ending:
    """The same for the coordinator."""
    return fill_agent_disk(harm, fault)


@_fault
def damage_agent(harm: Harm, fault: Fault) -> None:
    """A file of an agent's state is damaged while it is off."""
    fleet, device, chance = harm.fleet, fault.target, random.Random(fault.salt)
    how, _, what = fault.setting.partition(" ")
    folder = fleet.folder(device)
    fleet.kill(device)
    path = pick(folder, AGENT_FILES[what], chance)
    if path is None:
        raise NotHere(f"it has no {what} yet")
    database = what in ("outbox", "wal")
    harm.witness.meddled.add(device)
    if database:
        harm.witness.testify(device, folder)
    harm.say(damage(path, how, chance))
    if database:
        harm.witness.broken(device, folder, damaged=True)
    if what == "samples":
        harm.operator.give_samples(device)


@_fault
def roll_back_agent(harm: Harm, fault: Fault) -> Ending:
    """A copy of the state folder now, and put back later: a card's image."""
    fleet, device = harm.fleet, fault.target
    copy = fleet.copy(device, harm.name(device))

    def put_back() -> None:
        fleet.kill(device)
        harm.witness.testify(device, fleet.folder(device))
        fleet.replace(device, copy)
        harm.witness.broken(device, fleet.folder(device), damaged=False)

    return put_back


@_fault
def damage_coordinator(harm: Harm, fault: Fault) -> None:
    """A file of the coordinator's state is damaged while it is off; its operator runs an audit then."""
    fleet, chance = harm.fleet, random.Random(fault.salt)
    how, _, what = fault.setting.partition(" ")
    fleet.kill(COORDINATOR)
    path = pick(fleet.state, COORDINATOR_FILES[what], chance)
    if path is None:
        raise NotHere(f"it has no {what} yet")
    testimony = harm.witness.journal(fleet.state)
    before = rows_of(fleet.state) if what in ("journal", "wal") else None
    done = damage(path, how, chance)
    harm.say(done)
    try:
        after = rows_of(fleet.state) if before is not None else None
        harm.witness.give_up(testimony, harm.witness.journal(fleet.state), f"lost by damage: {done}")
        books = audit(fleet.state)
    except (LichenError, sqlite3.Error, OSError) as error:
        harm.say(f"it can be seen: {error}")
        return
    if not books.balanced:
        harm.operator.restore(f"{done}; lichen audit: {books.faults[0]}")
    elif before is not None and what == "journal" and after != before:
        # sqlite has no checksums on pages: a bit turned inside a value is for the file system to notice.
        harm.operator.restore(f"{done}; unnoticed by sqlite")


@_fault
def roll_back_coordinator(harm: Harm, fault: Fault) -> Ending:
    """The state folder is an old copy all at once: a backup that was restored, or a disk's snapshot."""
    fleet = harm.fleet
    copy = None
    if fault.setting == "snapshot":
        copy = fleet.copy(COORDINATOR, harm.name("snapshot"))
    else:
        harm.operator.back_up()
        copy = harm.operator.newest_backup
    if copy is None:
        raise NotHere("there is no backup yet")

    def put_back() -> None:
        fleet.kill(COORDINATOR)
        before = harm.witness.journal(fleet.state)
        fleet.replace(COORDINATOR, copy)
        after = harm.witness.journal(fleet.state)
        harm.witness.give_up(before, after, f"not in the {fault.setting} that was put back")

    return put_back


# Clocks


@_fault
def jump_agent_clock(harm: Harm, fault: Fault) -> Ending:
    """The wall clock of a running process jumps by years, and back."""
    clock = harm.fleet.clocks.get(fault.target)
    if clock is None:
        raise NotHere("moving a clock needs a C compiler")
    clock.move(float(fault.setting))
    return lambda: clock.move(0)


@_fault
def jump_coordinator_clock(harm: Harm, fault: Fault) -> Ending:
    """The same for the coordinator."""
    return jump_agent_clock(harm, fault)


# Doubles


@_fault
def clone_agent(harm: Harm, fault: Fault) -> Ending:
    """A second agent on a copy of the state folder, under the same name."""
    fleet, device = harm.fleet, fault.target
    name = harm.name(f"{device}-clone")
    home = fleet.out / "clones" / name
    copy = fleet.copy(device, name)
    harm.witness.testify(device, copy)
    harm.witness.meddled.add(device)
    shutil.copytree(copy, home / "state")
    shutil.copyfile(fleet.folder(device).parent / "agent.toml", home / "agent.toml")
    words = [sys.executable, "-m", "edge_agent", "run", "--config", str(home / "agent.toml")]
    clone = ManagedProcess(name, words, fleet.out / "fleet" / "logs" / f"{name}.log", folder=home)
    fleet.extras[name] = clone
    clone.start()

    def end() -> None:
        clone.kill()
        known = set(harm.witness.births)
        harm.witness.testify(device, home / "state")
        for update_id in harm.witness.births.keys() - known:
            harm.witness.births[update_id].destroyed = True
        harm.witness.note("clone gone", device=device, made=len(harm.witness.births.keys() - known))

    return end


@_fault
def second_coordinator(harm: Harm, fault: Fault) -> Ending:
    """A second coordinator for the fleet: with an empty store and a key of its own (``stranger``), or with a
    copy (``twin``). While the first one stands still either takes office (``usurper``, ``heir``)."""
    fleet = harm.fleet
    name = harm.name(fault.setting)
    home = fleet.out / "clones" / name
    home.mkdir()
    if fault.setting in ("stranger", "usurper"):
        (home / "coordinator").mkdir()
    else:
        shutil.copytree(fleet.copy(COORDINATOR, name), home / "coordinator")
    text = (fleet.out / "fleet" / "fleet.toml").read_text()
    for word in ("artifact", "held_out.npz"):
        text = text.replace(f'"{word}"', f'"{fleet.out / "fleet" / word}"')
    (home / "fleet.toml").write_text(text)
    words = [sys.executable, "-m", "lichen", "coordinator", "run", str(home / "fleet.toml"), "--insecure"]
    second = ManagedProcess(name, words, fleet.out / "fleet" / "logs" / f"{name}.log", folder=home)
    fleet.extras[name] = second
    if fault.setting in ("heir", "usurper"):
        fleet.pause(COORDINATOR)
    second.start()

    def end() -> None:
        if fault.setting in ("heir", "usurper"):
            fleet.resume(COORDINATOR)
        in_office = second.running
        second.kill()
        harm.say("the second one was in office" if in_office else f"it ended: {second.last_words(1)}")
        if (home / "coordinator" / "coordinator.db").exists():
            accepted = harm.witness.journal(home / "coordinator")
            with fleet.standing_still(COORDINATOR):
                left = harm.witness.journal(fleet.state)
            harm.witness.give_up(accepted, left, "accepted by a second coordinator, which was given up")

    return end


# Links


@_fault
def reset_link(harm: Harm, fault: Fault) -> None:
    """Every connection of a process is reset."""
    harm.fleet.links[fault.target].reset()


@_fault
def half_open_link(harm: Harm, fault: Fault) -> None:
    """Every connection goes dead without a word; new ones work."""
    harm.fleet.links[fault.target].forget()


@_fault
def black_out_link(harm: Harm, fault: Fault) -> Ending:
    """Nothing passes, nothing is refused."""
    link = harm.fleet.links[fault.target]
    link.pause()
    return link.resume


# The broker


@_fault
def kill_broker(harm: Harm, fault: Fault) -> None:
    """kill -9; it comes back with what its store had saved, or with nothing."""
    broker = harm.fleet.broker
    broker.kill(lose_store=fault.setting == "lost")
    broker.start()


@_fault
def pause_broker(harm: Harm, fault: Fault) -> Ending:
    """SIGSTOP, and SIGCONT."""
    harm.fleet.broker.signal(signal.SIGSTOP)
    return lambda: harm.fleet.broker.signal(signal.SIGCONT)


@_fault
def oversize_publishes(harm: Harm, fault: Fault) -> Ending:
    """Whatever is larger than so many bytes is acknowledged and dropped."""
    broker = harm.fleet.broker
    if not broker.adjustable:
        raise NotHere("this broker's limits are fixed")
    broker.limit(int(fault.setting))
    return broker.limit


@_fault
def denied_publishes(harm: Harm, fault: Fault) -> Ending:
    """What is published to a part of the tree is acknowledged and dropped."""
    broker = harm.fleet.broker
    if not broker.adjustable:
        raise NotHere("this broker's rights are fixed")
    broker.deny(fault.setting)
    return broker.deny


assert FAULTS.keys() == KINDS.keys()
