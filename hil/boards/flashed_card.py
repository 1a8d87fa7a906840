"""A card for an emulated board, made by the commands that a person types: a payload, and a flashed image."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.flash.boot import find_boot
from broker_coordinator.flash.fat import FatVolume
from broker_coordinator.flash.overlay import Overlay
from hil.boards import errand
from hil.boards.board import BoardFailure
from hil.boards.card_image import ROOT_START
from hil.boards.debian_root import run

__all__ = ["FlashedCard", "bundle_payload", "copy_seconds", "flash_card"]

ARCHITECTURE, PYTHON = "aarch64", "3.11"
"""The stand-in image's own: Debian 12 for arm64."""
BUNDLE_S = 600.0
FLASH_S = 300.0
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashedCard:
    """A card in a file; while a machine runs, it is the machine's. Flashing it took ``flash_s`` seconds."""

    path: Path
    flash_s: float = 0.0

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


def bundle_payload(fleet: Path, out: Path, *, say: Callable[[str], None] = lambda sentence: None) -> None:
    """Make a payload that the fleet signs.

    Raises:
        BoardFailure: `lichen fleet bundle` fails.
    """
    words = ["bundle", "--fleet", str(fleet), "--arch", ARCHITECTURE, "--python", PYTHON, "--preset", "0"]
    _lichen(*words, "--out", str(out), within_s=BUNDLE_S, say=say)


def flash_card(
    image: Path,
    fleet: Path,
    folder: Path,
    *,
    device: str,
    credential: Path,
    payload: Path,
    say: Callable[[str], None] = lambda sentence: None,
) -> FlashedCard:
    """Make a card that installs the payload at its first boot.

    Raises:
        BoardFailure: `lichen fleet flash` fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / "card.img"
    words = ["flash", "--fleet", str(fleet), "--image", str(image), "--payload", str(payload)]
    words += ["--device-id", device, "--credential", str(credential), "--out", str(card)]
    return FlashedCard(path=card, flash_s=_lichen(*words, within_s=FLASH_S, say=say))


def copy_seconds(image: Path, folder: Path) -> float:
    """How long it takes to copy an image, every byte of it, and to have it on the disk: what flashing is
    compared with."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / "copy.img"
    began = time.monotonic()
    try:
        with image.open("rb") as source, copy.open("wb") as target:
            while piece := source.read(_PIECE):
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        return time.monotonic() - began
    finally:
        copy.unlink(missing_ok=True)


def _lichen(*words: str, within_s: float, say: Callable[[str], None]) -> float:
    """Run `lichen fleet`; the seconds that it took."""
    began = time.monotonic()
    done = errand.run([sys.executable, "-m", "lichen", "fleet", *words], within_s=within_s)
    if done.returncode:
        raise BoardFailure(
            f"lichen fleet {words[0]} ended with {done.returncode}", hint=done.stderr.strip()[-2000:]
        )
    seconds = time.monotonic() - began
    say(f"lichen fleet {words[0]} took {seconds:.1f} s")
    return seconds
