"""An emulated machine: QEMU's ``virt``, an arm64 board of 512 MB whose disk is a card.

It reaches one TCP port of this machine and nothing else: the network of QEMU is shut but for ``BROKER``; what
connects there is relayed by a program of our own to ``relay_to`` on loopback.
"""

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fl_protocol.errors import ConfigError
from hil.boards.board import BoardFailure
from hil.boards.guest_agent import PORT_NAME, GuestAgent
from hil.boards.patience import Patience
from hil.processes import ManagedProcess

__all__ = ["BROKER", "EmulatedMachine", "MachineFiles"]

PROGRAM = "qemu-system-aarch64"
BROKER = ("10.0.2.100", 8883)
"""Where the machine finds the broker; the first half must stand in the broker's certificate."""
MEMORY_MB = 512
CORES = 2
"""A Pi Zero 2 W has four; more than this machine has are of no use."""
POWER_OFF_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFiles:
    """What it boots: ``cmdline`` is the kernel's command line, ``card`` its disk, which it writes to."""

    kernel: Path
    ramdisk: Path
    card: Path
    cmdline: str


class EmulatedMachine:
    """One machine. ``folder`` keeps its logs: ``console.log`` is the boot log, of all boots. The clock that
    it boots with is ``clock_offset_s`` ahead of this machine's."""

    def __init__(self, files: MachineFiles, folder: Path, *, relay_to: int) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise ConfigError(f"there is no {PROGRAM}", hint="apt-get install qemu-system-arm")
        self._files = files
        self._folder = folder
        self._relay_to = relay_to
        self._program = program
        self._process: ManagedProcess | None = None
        self._wanted = False
        self.clock_offset_s = 0.0
        self.console = folder / "console.log"
        self.agent = GuestAgent(folder / "agent.socket")
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def running(self) -> bool:
        """Whether it has power."""
        return self._process is not None and self._process.running

    @property
    def ended_by_itself(self) -> bool:
        """Whether it went off, and nobody asked it to."""
        return self._wanted and not self.running

    def start(self) -> None:
        """Give it power."""
        if self.running:
            return
        self.agent.close()
        (self._folder / "agent.socket").unlink(missing_ok=True)
        self._process = ManagedProcess(PROGRAM, self._words(), self._folder / "qemu.log", folder=self._folder)
        self._process.start()
        self._wanted = True

    def cut_power(self) -> None:
        """kill -9: what the machine had in its memory is gone, what it flushed to its card is there."""
        self._wanted = False
        self.agent.close()
        if self._process is not None:
            self._process.kill()

    def power_off(self, say: Callable[[str], None]) -> None:
        """Shut it down in order.

        Raises:
            BoardFailure: it has not gone off in time; it has no power then.
        """
        if not self.running:
            return
        self._wanted = False
        try:
            self.agent.power_off()
            Patience(say).until("the board shuts down", lambda: not self.running, within_s=POWER_OFF_S)
        except BoardFailure:
            self.cut_power()
            raise

    def _clock(self) -> str:
        if abs(self.clock_offset_s) < 1.0:
            return "utc"
        return f"{datetime.now(UTC) + timedelta(seconds=self.clock_offset_s):%Y-%m-%dT%H:%M:%S}"

    def _words(self) -> list[str]:
        files = self._files
        relay = shlex.join(
            [sys.executable, "-I", str(Path(__file__).with_name("relay.py")), str(self._relay_to)]
        )
        network = (
            f"user,id=net,restrict=on,guestfwd=tcp:{BROKER[0]}:{BROKER[1]}-cmd:{relay.replace(',', ',,')}"
        )
        return [
            *(self._program, "-M", "virt", "-cpu", "cortex-a53", "-smp", str(CORES), "-m", str(MEMORY_MB)),
            *("-accel", "tcg,thread=multi", "-nographic", "-monitor", "none", "-nodefaults", "-no-reboot"),
            *("-kernel", str(files.kernel), "-initrd", str(files.ramdisk), "-append", files.cmdline),
            *("-drive", f"file={files.card},format=raw,if=none,id=card,cache=writeback"),
            *("-device", "virtio-blk-device,drive=card"),
            *("-netdev", network, "-device", "virtio-net-device,netdev=net"),
            *("-device", "virtio-rng-device", "-rtc", f"base={self._clock()}"),
            *("-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console"),
            *("-device", "virtio-serial-device"),
            *("-chardev", f"socket,id=agent,path={self._folder / 'agent.socket'},server=on,wait=off"),
            *("-device", f"virtserialport,chardev=agent,name={PORT_NAME}"),
        ]
