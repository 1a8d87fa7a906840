"""A card for an emulated board, made by the commands that a person types: a payload, and a flashed image."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.flash.boot import find_boot
from broker_coordinator.flash.fat import FatVolume
from broker_coordinator.flash.overlay import Overlay
from hil.boards.board import BoardFailure
from hil.boards.card_image import ROOT_START
from hil.boards.debian_root import run

__all__ = ["FlashedCard", "flash_card"]

ARCHITECTURE, PYTHON = "aarch64", "3.11"
"""The stand-in image's own: Debian 12 for arm64."""
BUNDLE_S = 600.0
FLASH_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashedCard:
    """A card in a file; while a machine runs, it is the machine's."""

    path: Path

    @property
    def cmdline(self) -> str:
        """The kernel's command line, which a Pi's firmware reads from the FAT.

        Raises:
            ConfigError: there is no FAT of a Raspberry Pi any more.
            BoardFailure: there is no cmdline.txt on it.
        """
        with self.path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            partition = find_boot(read).partition
            text = FatVolume(Overlay(read), partition.start, partition.size).read_file("cmdline.txt")
        if text is None:
            raise BoardFailure(f"{self.path} has no cmdline.txt")
        return text.decode().strip()

    def copy_out(self, path: str, target: Path) -> bool:
        """Copy a file from the ext4 root; False where there is none. The machine must be shut down.

        Raises:
            LichenError: debugfs is missing, or fails.
        """
        target.unlink(missing_ok=True)
        run(
            ["debugfs", "-R", f"dump {path} {target}", f"{self.path}?offset={ROOT_START}"],
            what=f"{path} cannot be read from the card",
        )
        return target.exists() and target.stat().st_size > 0


def flash_card(
    image: Path,
    fleet: Path,
    folder: Path,
    *,
    device: str,
    credential: Path,
    say: Callable[[str], None] = lambda sentence: None,
) -> FlashedCard:
    """Make a payload that the fleet signs, and a card that installs it at its first boot.

    Raises:
        BoardFailure: `lichen fleet bundle` or `lichen fleet flash` fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    payload, card = folder / "payload.tar.xz", folder / "card.img"
    words = ["bundle", "--fleet", str(fleet), "--arch", ARCHITECTURE, "--python", PYTHON]
    _lichen(*words, "--out", str(payload), within_s=BUNDLE_S, say=say)
    words = ["flash", "--fleet", str(fleet), "--image", str(image), "--payload", str(payload)]
    words += ["--device-id", device, "--credential", str(credential), "--out", str(card)]
    _lichen(*words, within_s=FLASH_S, say=say)
    payload.unlink()
    return FlashedCard(path=card)


def _lichen(*words: str, within_s: float, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lichen", "fleet", *words],
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise BoardFailure(f"lichen fleet {words[0]} takes longer than {within_s:.0f} s") from None
    if done.returncode:
        raise BoardFailure(
            f"lichen fleet {words[0]} ended with {done.returncode}", hint=done.stderr.strip()[-2000:]
        )
    say(f"lichen fleet {words[0]} took {time.monotonic() - began:.1f} s")
