"""The board `qemu`: a flashed card in an emulated arm64 machine, with systemd and the shipped unit.

What is flashed and what boots is what is shipped; the image alone has QEMU's guest agent besides, by which
samples come to the device and its status comes back. ``stop`` ends the service and leaves the machine on, as
on a board over SSH. A power cut is kill -9 of the machine: what the guest had not flushed is gone, unlike on
a board that is a process.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hil.boards.board import ABILITIES, BoardFailure
from hil.boards.flashed_card import FlashedCard
from hil.boards.line import RelayLine
from hil.boards.machine import EmulatedMachine, MachineFiles
from hil.boards.patience import Patience
from hil.boards.site import Site

__all__ = ["STATE", "QemuBoard"]

BOOT_S = 300.0
FIRST_BOOT_S = 1800.0
SAMPLES_S = 300.0
STOP_S = 180.0
DISK_S = 120.0
ANSWER_S = 5.0
STATUS_EVERY_S = 0.5
MEMORY_EVERY_S = 3.0
POLL_S = 2.0
"""Asking costs the guest time that it trains with: an agent has what others leave (scheduling idle)."""
STATE = "/var/lib/lichen"
_AGENT = "/opt/lichen/current/lichen-agent"
_CONFIGURATION = "/etc/lichen/agent.toml"
_STATUS = f"{STATE}/run/status.json"
_UNIT = "lichen-agent.service"
_GIVEN = "/run/samples.npz"
_BOOTED = "/run/systemd/notify"
"""Made when systemd starts."""
_LOG_BYTES = 64 << 10
_KIB = 1 << 10
_MIB = 1 << 20
_BOOKS = ("agent.db", "agent.db-wal")
_COPY = "/run/books.db"
_COPY_BOOKS = f"""
import sqlite3
with sqlite3.connect("file:{STATE}/agent.db?mode=ro", uri=True) as book, sqlite3.connect("{_COPY}") as copy:
    book.backup(copy)
"""
_FILL = (
    f"cd {STATE} && fallocate -l $(df -Pk . | awk 'NR==2 {{print $4}}')K .filler;"
    " for size in 64k 512; do dd if=/dev/zero bs=$size >>.filler; done; true"
)
_MOVE_CLOCK = "up=$(cut -d. -f1 /proc/uptime); to=$1; [ $to -gt $up ] || to=$((up + 1)); date -s @$to"
"""The kernel lets no clock say that it booted before 1970."""


class QemuBoard:
    """One emulated device with its card; see ``hil.boards.board.Board``.

    Raises:
        ConfigError: there is no emulator.
    """

    slowness = 6.0
    abilities = ABILITIES

    def __init__(
        self, device: str, site: Site, folder: Path, *, kernel: Path, ramdisk: Path, card: FlashedCard
    ) -> None:
        self.device = device
        self.card = card
        self._say = site.say
        self._samples = site.samples(device)
        self._has_samples = False
        self._disk_is_full = False
        self._folder = folder
        self._line = RelayLine(site.port)
        files = MachineFiles(kernel=kernel, ramdisk=ramdisk, card=card.path, cmdline=card.cmdline)
        with contextlib.ExitStack() as stack:
            stack.callback(self._line.close)
            self.machine = EmulatedMachine(files, folder, relay_to=self._line.port)
            stack.pop_all()
        self._status: dict[str, Any] = {}
        self._asked = self._weighed = self._powered = 0.0
        self._is_up = False
        self._figures: dict[str, float] = {}

    def power_on(self) -> None:
        """Have the machine boot, if it does not run; nobody waits for it."""
        if self.machine.running:
            return
        self._asked, self._status, self._is_up = 0.0, {}, False
        self._powered = self._powered or time.monotonic()
        self.machine.start()

    def start(self) -> None:
        """Boot, or start the agent where the machine is on; the first time, wait until the agent is installed
        and give it its samples."""
        if not self.machine.running:
            self.power_on()
        elif self._has_samples:
            self._until("it boots", self._up, BOOT_S)
            if self._service_runs():
                raise BoardFailure(f"{self.device} runs already", hint="stop it, or cut its power")
            self.machine.agent.run(["/bin/systemctl", "start", "--no-block", _UNIT])
            self._asked = 0.0
        if self._has_samples:
            return
        self._until("it boots", self._up, BOOT_S)
        self._until("its first boot installs the agent", self._service_runs, FIRST_BOOT_S)
        guest = self.machine.agent
        # By the input of a program: the guest agent's file writes are small, and this is one question.
        guest.run(["/bin/sh", "-c", f"cat >{_GIVEN} && chmod 644 {_GIVEN}"], stdin=self._samples.read_bytes())
        self._as_agent(_AGENT, "samples", "add", "--config", _CONFIGURATION, _GIVEN, within_s=SAMPLES_S)
        guest.run(["/bin/sync"])
        self._has_samples = True

    def stop(self) -> None:
        """Stop the service; the machine stays on.

        Raises:
            BoardFailure: the agent did not end by itself.
        """
        self._expect_alive()
        guest = self.machine.agent
        guest.run(["/bin/systemctl", "stop", _UNIT], within_s=STOP_S)
        self._asked = 0.0
        result = guest.run(["/bin/systemctl", "show", "--property=Result", "--value", _UNIT]).strip()
        if result != "success":
            raise BoardFailure(f"{self.device} was to stop: {result}", hint=self.logs()[-2000:])

    def cut_power(self) -> None:
        """kill -9 of the machine."""
        self.machine.cut_power()
        self._is_up = False

    def link(self, profile: str) -> None:
        """Change the relay."""
        self._line.change(profile)

    def fill_disk(self) -> None:
        """Fill the root as far as the agent's user may; the reserve of ext4 is root's."""
        self._disk_is_full = True
        self._as_agent("/bin/sh", "-c", _FILL, within_s=DISK_S)

    def free_disk(self) -> None:
        """Take the filler away."""
        if self._disk_is_full:
            self.machine.agent.run(["/bin/rm", "-f", f"{STATE}/.filler"])
            self._disk_is_full = False

    def set_clock(self, unix_s: float) -> None:
        """Move the machine's clock, and that which it boots with."""
        if abs(self.machine.clock_offset_s - (unix_s - time.time())) < 1.0:
            return
        self.machine.clock_offset_s = unix_s - time.time()
        if self.machine.running:
            self._until("it boots", self._up, BOOT_S)
            self.machine.agent.run(["/bin/sh", "-c", _MOVE_CLOCK, "sh", f"{unix_s:.0f}"])

    def status(self) -> dict[str, Any]:
        """What its agent last wrote, and whether that agent runs; empty while the machine does not answer.

        Raises:
            BoardFailure: the machine went off by itself.
        """
        self._expect_alive()
        # A board that was never started may have power, and an agent without samples.
        if not self._has_samples or not self.machine.running or not self._up():
            return {}
        if time.monotonic() - self._asked >= STATUS_EVERY_S:
            self._status = self._ask_status()
            self._asked = time.monotonic()
            self._measure(self._status)
        return self._status

    def books(self) -> Path | None:
        """Its books: copied by sqlite on the board, or read from its card where it is off; None before there
        are any."""
        folder = self._folder / "books"
        folder.mkdir(exist_ok=True)
        if not self.machine.running:
            found = [self.card.copy_out(f"{STATE}/{name}", folder / name) for name in _BOOKS]
            return folder if found[0] else None
        guest = self.machine.agent
        guest.run(["/bin/rm", "-f", _COPY])
        guest.run(["/usr/bin/python3", "-c", _COPY_BOOKS])
        for name in _BOOKS:
            (folder / name).unlink(missing_ok=True)
        (folder / _BOOKS[0]).write_bytes(guest.read(_COPY) or b"")
        return folder

    def figures(self) -> Mapping[str, float]:
        """What was measured so far: seconds (``_s``) and MiB (``_mib``)."""
        return {"flash_s": round(self.card.flash_s, 1), **self._figures}

    def logs(self) -> str:
        """The end of its console, to which the whole journal goes."""
        with contextlib.suppress(OSError):
            return self.machine.console.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
        return ""

    def close(self) -> None:
        """Shut the machine down in order where it answers, else power off; the card is removed, the console's
        log stays."""
        try:
            with contextlib.suppress(BoardFailure):
                if self.machine.running and self._up():
                    self.machine.power_off(self._say)
        finally:
            self.machine.cut_power()
            self._line.close()
            self.card.path.unlink(missing_ok=True)

    def _up(self) -> bool:
        """Whether its system has booted; seen for the first time, what an earlier boot said is removed."""
        if not self._is_up and self.machine.running and self.machine.agent.answers(ANSWER_S):
            with contextlib.suppress(BoardFailure):
                # An agent often has the number that it had before the power cut: that one's word is not its.
                words = ["/usr/bin/find", _STATUS, "!", "-newer", _BOOTED, "-delete"]
                self.machine.agent.run(words, check=False)
                self._is_up = True
        return self._is_up

    def _ask_status(self) -> dict[str, Any]:
        guest = self.machine.agent
        try:
            status: dict[str, Any] = json.loads(guest.read(_STATUS) or b"{}")
            # What an earlier boot wrote is still there, and its number may be another program's now.
            words = guest.read(f"/proc/{status.get('pid', 0)}/cmdline") or b""
        except (BoardFailure, ValueError):
            return {}
        status["running"] = b"lichen-agent" in words and b"\0run\0" in words
        if not status["running"]:
            status |= {"connected": False, "state": "stopped"}
        return status

    def _measure(self, status: Mapping[str, Any]) -> None:
        """Times since the first power-on, and the most memory that agent and worker had. An agent may have
        connected before it was given samples: nobody asks it until then."""
        now, found = time.monotonic(), self._figures
        if not status.get("running"):
            return
        for name, seen in (
            ("first_connection_s", status.get("connected")),
            ("first_update_s", status.get("updates", {}).get("done")),
        ):
            if seen:
                found.setdefault(name, round(now - self._powered, 1))
        if now - self._weighed < MEMORY_EVERY_S:
            return
        self._weighed = now
        worker = status.get("worker", {}).get("pid")
        own = self._memory_mib(status["pid"], "VmRSS")
        found["agent_rss_mib"] = max(found.get("agent_rss_mib", 0.0), own)
        if worker:
            peak = self._memory_mib(worker, "VmHWM")
            found["worker_peak_rss_mib"] = max(found.get("worker_peak_rss_mib", 0.0), peak)
            both = found["agent_rss_mib"] + found["worker_peak_rss_mib"]
            found["training_rss_mib"] = round(both, 1)

    def _memory_mib(self, pid: int, name: str) -> float:
        """A line of /proc/PID/status, in MiB; 0 where the process is gone."""
        with contextlib.suppress(BoardFailure):
            lines = (self.machine.agent.read(f"/proc/{pid}/status") or b"").decode().splitlines()
            for line in lines:
                if line.startswith(f"{name}:"):
                    return round(int(line.split()[1]) * _KIB / _MIB, 1)
        return 0.0

    def _as_agent(self, *words: str, within_s: float) -> None:
        self.machine.agent.run(["/sbin/runuser", "-u", "lichen", "--", *words], within_s=within_s)

    def _service_runs(self) -> bool:
        with contextlib.suppress(BoardFailure):
            said = self.machine.agent.run(["/bin/systemctl", "is-active", _UNIT], check=False)
            return said.strip() in ("active", "activating")
        return False

    def _expect_alive(self) -> None:
        if self.machine.ended_by_itself:
            raise BoardFailure(f"{self.device} went off by itself", hint=self.logs()[-2000:])

    def _until(self, what: str, holds: Any, within_s: float) -> None:
        def still() -> bool:
            self._expect_alive()
            return bool(holds())

        Patience(self._say).until(
            f"{self.device}: {what}", still, within_s=within_s, why=lambda: self.logs()[-2000:], poll_s=POLL_S
        )
