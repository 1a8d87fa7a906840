"""The board `qemu`: a flashed card in an emulated arm64 machine, with systemd and the shipped unit.

What is flashed and what boots is what is shipped; the image alone has QEMU's guest agent besides, by which
samples come to the device and its status comes back. A power cut is kill -9 of the machine: what the guest
had not flushed is gone, unlike on a board that is a process.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from hil.boards.board import BoardFailure
from hil.boards.card_image import card_image
from hil.boards.flashed_card import flash_card
from hil.boards.line import RelayLine
from hil.boards.machine import BROKER, EmulatedMachine, MachineFiles
from hil.boards.patience import Patience
from hil.boards.site import Site

__all__ = ["QemuBoard"]

BOOT_S = 300.0
FIRST_BOOT_S = 900.0
SAMPLES_S = 300.0
STATUS_EVERY_S = 0.5
POLL_S = 2.0
"""Asking costs the guest time that it trains with: an agent has what others leave (scheduling idle)."""
_AGENT = "/opt/lichen/current/lichen-agent"
_CONFIGURATION = "/etc/lichen/agent.toml"
_STATE = "/var/lib/lichen"
_STATUS = f"{_STATE}/run/status.json"
_GIVEN = "/run/samples.npz"
_BOOTED = "/run/systemd/notify"
"""Made when systemd starts."""
_LOG_BYTES = 64 << 10
_BOOKS = ("agent.db", "agent.db-wal")


class QemuBoard:
    """One emulated device; see ``hil.boards.board.Board``. Payload and card are made here: minutes, and the
    first time of all the stand-in image.

    Raises:
        ConfigError: programs or rights are missing.
        BoardFailure: payload or card cannot be made.
    """

    slowness = 6.0
    abilities = frozenset({"power", "link"})

    def __init__(self, device: str, site: Site, folder: Path) -> None:
        self.device = device
        self._say = site.say
        self._samples = site.samples(device)
        self._has_samples = False
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        image = card_image(say=site.say)
        credential = site.enroll(device, broker=f"mqtts://{BROKER[0]}:{BROKER[1]}", state=_STATE)
        self.card = flash_card(
            image.image, site.fleet, folder, device=device, credential=credential, say=site.say
        )
        self._line = RelayLine(site.port)
        files = MachineFiles(
            kernel=image.kernel, ramdisk=image.ramdisk, card=self.card.path, cmdline=self.card.cmdline
        )
        self.machine = EmulatedMachine(files, folder, relay_to=self._line.port)
        self._status: dict[str, Any] = {}
        self._asked = 0.0

    def start(self) -> None:
        """Boot, and wait until systemd is up; the first time, until the agent is installed and has its
        samples."""
        if self.machine.running:
            raise BoardFailure(f"{self.device} runs already", hint="stop it, or cut its power")
        self._asked = 0.0
        self.machine.start()
        guest = self.machine.agent
        self._until("it boots", guest.answers, BOOT_S)
        # An agent often has the number that it had before the power cut: what that one wrote is not its word.
        guest.run(["/usr/bin/find", _STATUS, "!", "-newer", _BOOTED, "-delete"], check=False)
        if self._has_samples:
            return
        self._until("its first boot installs the agent", self._installed, FIRST_BOOT_S)
        # By the input of a program: the guest agent's file writes are small, and this is one question.
        guest.run(["/bin/sh", "-c", f"cat >{_GIVEN} && chmod 644 {_GIVEN}"], stdin=self._samples.read_bytes())
        words = [_AGENT, "samples", "add", "--config", _CONFIGURATION, _GIVEN]
        guest.run(["/sbin/runuser", "-u", "lichen", "--", *words], within_s=SAMPLES_S)
        guest.run(["/bin/sync"])
        self._has_samples = True

    def stop(self) -> None:
        """Shut the machine down in order."""
        self._expect_alive()
        self.machine.power_off(self._say)

    def cut_power(self) -> None:
        """kill -9 of the machine."""
        self.machine.cut_power()

    def link(self, profile: str) -> None:
        """Change the relay."""
        self._line.change(profile)

    def fill_disk(self) -> None:
        """It has no such ability."""
        raise BoardFailure(f"the disk of {self.device} cannot be filled")

    def free_disk(self) -> None:
        """Nothing fills it."""

    def set_clock(self, unix_s: float) -> None:
        """It has no such ability."""
        raise BoardFailure(f"the clock of {self.device} cannot be moved")

    def status(self) -> dict[str, Any]:
        """What its agent last wrote, and whether that agent runs; empty while the machine does not answer.

        Raises:
            BoardFailure: the machine went off by itself.
        """
        self._expect_alive()
        if not self.machine.running:
            return {}
        if time.monotonic() - self._asked >= STATUS_EVERY_S:
            self._status = self._ask_status()
            self._asked = time.monotonic()
        return self._status

    def books(self) -> Path | None:
        """Its books, read from the card; None while it has power, and before there are any."""
        if self.machine.running:
            return None
        folder = self._folder / "books"
        folder.mkdir(exist_ok=True)
        found = [self.card.copy_out(f"{_STATE}/{name}", folder / name) for name in _BOOKS]
        return folder if found[0] else None

    def logs(self) -> str:
        """The end of its console, to which the whole journal goes."""
        with contextlib.suppress(OSError):
            return self.machine.console.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
        return ""

    def close(self) -> None:
        """Power off at once; the card is removed, the console's log stays."""
        self.machine.cut_power()
        self._line.close()
        self.card.path.unlink(missing_ok=True)

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

    def _installed(self) -> bool:
        with contextlib.suppress(BoardFailure):
            said = self.machine.agent.run(
                ["/bin/systemctl", "is-active", "lichen-agent.service"], check=False
            )
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
