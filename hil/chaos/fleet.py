"""The fleet that is to be broken: real processes, each behind a link of its own, kept alive as by systemd.

OUT/fleet/      what LocalFleet makes, and logs/            OUT/broker/   the broker's folder
OUT/clones/     cloned devices, and second coordinators     OUT/copies/   copies and backups of stores
OUT/clocks/     one file for each wall clock                OUT/witness.jsonl
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fl_protocol.errors import LichenError
from hil.chaos.broker import broker_of
from hil.chaos.clock import MovableClock, build_shim
from hil.chaos.schedule import COORDINATOR
from hil.link import LinkEmulator
from hil.link_profile import LinkProfile
from hil.local_fleet import FleetOptions, LocalFleet
from hil.processes import ManagedProcess, children

__all__ = ["FLEET", "ChaosFleet"]

FLEET = "chaos"
RESTART_S = 1.0
AGENT_DISK = "16m"
COORDINATOR_DISK = "96m"
FLUSH_AFTER_S = 3.0
SPREAD_S = 2.0
KEPT_VERSIONS = 20
"""Payloads are pruned while the fleet is broken, too."""
FILLER = ".filler"
_LEAST_KEEPALIVE_S = 10
_SMALL_HIDDEN, _LARGE_HIDDEN = 32, 512
_GATES_SHUT = "\n[gates]\nmin_samples = 1000000000\n"


class ChaosFleet:
    """Processes, links, disks and clocks of one run. A context: at its end nothing is left but files."""

    def __init__(self, out: Path, *, devices: int, seed: int, broker: str, large: bool = False) -> None:
        self.out = out
        self._large = large
        for name in ("broker", "clones", "copies", "clocks"):
            (out / name).mkdir(parents=True, exist_ok=True)
        self.broker = broker_of(broker, out / "broker")
        self.links: dict[str, LinkEmulator] = {}
        self.clocks: dict[str, MovableClock] = {}
        self.mounts: list[Path] = []
        self.paused: set[str] = set()
        self.down: dict[str, float] = {}
        """Processes that do not run, and since when."""
        self.exits: list[str] = []
        """How processes ended of which we did not end."""
        self.held: set[str] = set()
        """Processes that are not to be started again now."""
        self.extras: dict[str, ManagedProcess] = {}
        """Clones and second coordinators, by name."""
        self._devices, self._seed = devices, seed
        self._stack = contextlib.ExitStack()
        self.local: LocalFleet

    def __enter__(self) -> "ChaosFleet":
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    # Who is who

    @property
    def state(self) -> Path:
        """The coordinator's state folder."""
        return self.local.state

    def folder(self, target: str) -> Path:
        """The state folder of a device, or of the coordinator."""
        return self.state if target == COORDINATOR else self.local.agent_state(target)

    def process(self, target: str) -> ManagedProcess:
        """The process of a device, or of the coordinator."""
        return self.local.coordinator if target == COORDINATOR else self.local.agents[target]

    @property
    def targets(self) -> list[str]:
        """The coordinator, and every device."""
        return [COORDINATOR, *self.local.agents]

    # Life and death

    def start(self, target: str) -> None:
        """Start a process, with its own clock."""
        clock = self.clocks.get(target)
        self.down.pop(target, None)
        self.process(target).start(clock.environment if clock else None)

    def kill(self, target: str) -> None:
        """kill -9; ``attend`` starts it again after a second."""
        self.process(target).kill()
        self.paused.discard(target)
        self.down[target] = time.monotonic()

    def pause(self, target: str) -> None:
        """SIGSTOP."""
        self.process(target).signal(signal.SIGSTOP)
        self.paused.add(target)

    def resume(self, target: str) -> None:
        """SIGCONT."""
        self.process(target).signal(signal.SIGCONT)
        self.paused.discard(target)

    @contextlib.contextmanager
    def standing_still(self, target: str) -> Iterator[None]:
        """Nothing of this process and its children moves while the block runs, as for a disk's snapshot."""
        process = self.process(target)
        family = [process.pid, *children(process.pid)] if process.running else []
        for pid in family:
            _signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in family:
                if target not in self.paused or pid != process.pid:
                    _signal(pid, signal.SIGCONT)

    def attend(self) -> None:
        """What systemd would do: start again what has ended, a second later."""
        now = time.monotonic()
        for target in self.targets:
            if self.process(target).running or target in self.held:
                continue
            if target not in self.down:
                self.down[target] = now
                process = self.process(target)
                words = process.last_words(1)
                self.exits.append(f"{target} ended with {process.exit_code}: {words}")
            elif now - self.down[target] >= RESTART_S:
                self.start(target)

    def shut_gates(self) -> None:
        """Let devices train no more: they only deliver what they have."""
        for device in self.local.agents:
            self.process(device).stop()
            path = self.folder(device).parent / "agent.toml"
            text = path.read_text()
            if _GATES_SHUT not in text:
                path.write_text(text + _GATES_SHUT)
            self.start(device)

    # Copies

    def copy(self, target: str, name: str) -> Path:
        """A copy of a state folder at one moment, in a new folder of that name."""
        copy = self.out / "copies" / name
        with self.standing_still(target):
            copy_store(self.folder(target), copy)
        return copy

    def replace(self, target: str, copy: Path) -> None:
        """Put a copy in the place of a state folder; its process must not run. The disk is empty then."""
        folder = self.folder(target)
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        copy_store(copy, folder)

    def stop(self) -> None:
        """End every process, and every other thing that a test of the books must not meet."""
        for name, extra in self.extras.items():
            extra.kill()
            self.held.add(name)
        for target in list(self.paused):
            self.resume(target)
        self.held.update(self.targets)
        for device in self.local.agents:
            self.process(device).signal(signal.SIGTERM)
        for device in self.local.agents:
            self.process(device).stop()
        self.local.coordinator.stop()

    # Building

    def _build(self) -> None:
        self.broker.start()
        self._stack.callback(self.broker.stop)
        url = f"mqtt://127.0.0.1:{self.broker.port}"
        self.local = LocalFleet(
            self.out / "fleet", _options(url, self._devices, self._seed, large=self._large)
        )
        self._mount(self.local.state, COORDINATOR_DISK)
        for device in self.local.agents:
            self._mount(self.local.agent_state(device), AGENT_DISK)
        self.local.prepare()
        self._stack.callback(self._end_processes)
        shim = build_shim(self.out / "clocks")
        for target in self.targets:
            link = LinkEmulator(LinkProfile(), upstream=("127.0.0.1", self.broker.port), seed=self._seed)
            self.links[target] = self._stack.enter_context(link)
            path = self.out / "fleet" / "fleet.toml"
            if target != COORDINATOR:
                path = self.folder(target).parent / "agent.toml"
            path.write_text(path.read_text().replace(url, f"mqtt://127.0.0.1:{link.port}"))
            if shim is not None:
                self.clocks[target] = MovableClock(shim, self.out / "clocks" / target)

    def _end_processes(self) -> None:
        with contextlib.suppress(LichenError):
            self.stop()

    def _mount(self, folder: Path, size: str) -> None:
        """A small disk of its own, where we may mount one."""
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0 or sys.platform != "linux":
            return
        words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=770", "lichen-chaos", str(folder)]
        if subprocess.run(words, capture_output=True, timeout=10, check=False).returncode == 0:
            self.mounts.append(folder)
            self._stack.callback(self._unmount, folder)

    def _unmount(self, folder: Path) -> None:
        """The files stay, on the ordinary disk."""
        (folder / FILLER).unlink(missing_ok=True)
        aside = folder.with_name(f"{folder.name}.files")
        shutil.copytree(folder, aside, symlinks=True)
        subprocess.run(["umount", str(folder)], capture_output=True, timeout=10, check=True)
        folder.rmdir()
        aside.rename(folder)


def _options(url: str, devices: int, seed: int, *, large: bool) -> FleetOptions:
    """``large`` updates have 150 KB and travel in chunks; others fit into one message."""
    return FleetOptions(
        name=FLEET,
        devices=devices,
        versions=0,
        broker=url,
        runtime="numpy",
        partition="iid",
        seed=seed,
        epochs=1,
        hidden=_LARGE_HIDDEN if large else _SMALL_HIDDEN,
        codec="float32" if large else "eden(bits=1)",
        settings={
            "buffer": {"flush_after_s": FLUSH_AFTER_S},
            "selection": {"spread_s": SPREAD_S},
            "retention": {"versions": KEPT_VERSIONS},
        },
        agent_settings={"": {"keepalive_s": _LEAST_KEEPALIVE_S}},
    )


def copy_store(source: Path, copy: Path) -> None:
    """Copy a state folder without what is only of the moment."""
    shutil.copytree(
        source,
        copy,
        ignore=shutil.ignore_patterns("lock", "run", FILLER, "*-shm", ".*"),
        dirs_exist_ok=True,
    )


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
