"""Cards for emulated boards, made all at once: one payload, one image, and a card for each board.

Payload and image are made at the same time: each keeps one core busy.
"""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hil.boards.card_image import card_image, made_card_image
from hil.boards.flashed_card import bundle_payload, copy_seconds, flash_card
from hil.boards.machine import BROKER
from hil.boards.qemu_board import STATE, QemuBoard
from hil.boards.site import Site

__all__ = ["FlashedBoards", "flash_boards"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashedBoards:
    """Boards that have never had power; ``figures`` are the seconds that their making took. ``image_s`` is
    there only where the stand-in image was not in the cache."""

    boards: Sequence[QemuBoard]
    figures: dict[str, float]


def flash_boards(site: Site, folder: Path, names: Sequence[str]) -> FlashedBoards:
    """Make the devices of these names, each with its card in a folder of its own below ``folder``.

    Raises:
        ConfigError: programs or rights are missing.
        BoardFailure: payload or card cannot be made.
        LichenError: the image cannot be made.
    """
    began = time.monotonic()
    figures: dict[str, float] = {}
    payload = folder / "payload.tar.xz"
    cached = made_card_image() is not None
    with ThreadPoolExecutor(1) as other:
        bundled = other.submit(bundle_payload, site.fleet, payload)
        image = card_image(say=site.say)
        if not cached:
            figures["image_s"] = time.monotonic() - began
        site.say("making the payload")
        bundled.result()
    figures["copy_s"] = copy_seconds(image.image, folder)
    boards = []
    with contextlib.ExitStack() as stack:
        for name in names:
            card = flash_card(
                image.image,
                site.fleet,
                folder / name,
                device=name,
                credential=site.enroll(name, broker=f"mqtts://{BROKER[0]}:{BROKER[1]}", state=STATE),
                payload=payload,
                say=site.say,
            )
            boards.append(
                QemuBoard(name, site, folder / name, kernel=image.kernel, ramdisk=image.ramdisk, card=card)
            )
            stack.callback(boards[-1].close)
        stack.pop_all()
    payload.unlink()
    figures["ready_to_boot_s"] = time.monotonic() - began
    return FlashedBoards(boards=boards, figures={name: round(value, 1) for name, value in figures.items()})
