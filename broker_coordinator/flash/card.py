"""Writes a card: the image, changed on its FAT partition alone, and read back until every byte is proved.

The first block, with the partition table, is written last. Until all else was read back from the card there
is none: a card that was pulled out early, or whose writing was killed, does not boot.
"""

import datetime
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.flash.boot import BootPartition, FirstBoot, find_boot
from broker_coordinator.flash.fat import FatVolume
from broker_coordinator.flash.first_boot import FirstBootPlan, edited_cmdline, first_boot_files
from broker_coordinator.flash.identity import DeviceIdentity
from broker_coordinator.flash.image import BLOCK, CardImage
from broker_coordinator.flash.overlay import Overlay
from broker_coordinator.flash.target import CardTarget
from fl_protocol.errors import ConfigError, StorageError

__all__ = ["FlashedCard", "Progress", "card_files", "check_room", "payload_name", "write_card"]

RESERVE_BYTES = 4 << 20
"""Left free on the FAT: for folders, the log of the first boot, the system's own updates."""

Progress = Callable[[str, float], None]
"""``progress(stage, fraction)``: ``write`` and ``verify``, 0 to 1."""

_PAYLOADS = ((b"\xfd7zXZ\0", "payload.tar.xz"), (b"\x1f\x8b", "payload.tar.gz"))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashedCard:
    """What was written: ``sha256`` (hex) is that of all ``size`` bytes, as read back from the card."""

    device: str
    out: Path
    first_boot: FirstBoot
    size: int
    sha256: str
    files: tuple[str, ...]
    memory_limit: bool


def payload_name(head: bytes) -> str:
    """The name of a payload on the card, by its first bytes. Raises ConfigError if it is no tar archive."""
    for magic, name in _PAYLOADS:
        if head.startswith(magic):
            return name
    raise ConfigError("the payload is no .tar.xz and no .tar.gz", hint="lichen fleet bundle makes one")


def card_files(
    plan: FirstBootPlan, mode: FirstBoot, identity: DeviceIdentity, payload: bytes | None
) -> Mapping[str, bytes]:
    """All that goes onto the FAT, by path. What starts the rest comes last."""
    files = {f"lichen/device/{name}": content for name, content in identity.files.items()}
    if payload is not None:
        files[f"lichen/{payload_name(payload)}"] = payload
    return {**files, **first_boot_files(plan, mode)}


def check_room(boot: BootPartition, files: Mapping[str, bytes], room: int | None) -> None:
    """Whether all of it fits, before anything is written. ``room`` is the card's size in bytes.

    Raises:
        StorageError: the card or the FAT is too small.
    """
    if room is not None and room < boot.table.end:
        raise StorageError(
            f"the card is too small: the image needs {boot.table.end} bytes, it has {room}",
            hint="take a larger card",
        )
    needed = sum(len(content) for content in files.values()) + RESERVE_BYTES
    if needed > boot.free_bytes:
        raise StorageError(
            f"the image's boot partition is too small: {needed} bytes are needed, {boot.free_bytes} are free",
            hint="take a smaller payload, or an image with a larger boot partition",
        )


def write_card(
    image: CardImage,
    target: CardTarget,
    *,
    plan: FirstBootPlan,
    identity: DeviceIdentity,
    payload: bytes | None = None,
    progress: Progress = lambda stage, fraction: None,
) -> FlashedCard:
    """Write a card, and read it back.

    Raises:
        ConfigError: the image is not understood.
        StorageError: too small, or the card does not give back what was written; it is no card then.
    """
    boot = find_boot(image.read)
    files = card_files(plan, boot.first_boot, identity, payload)
    check_room(boot, files, target.size)
    head, digests, size = _copy(image, target, boot, progress)

    def written(offset: int, length: int) -> bytes:
        length = max(0, min(length, size - offset))
        early = head[offset : offset + length]
        return early + target.read(offset + len(early), length - len(early))

    card = Overlay(written)
    memory_limit, names = _personalise(card, boot, files)
    target.sync()
    head = _apply(card, head, digests, target, size)
    target.sync()
    total = hashlib.sha256(head)
    _verify(target, digests, size, total, progress)
    target.write(0, head)
    target.sync()
    if target.read(0, len(head)) != head:
        raise _spoilt(target, 0)
    target.finish()
    return FlashedCard(
        device=plan.device,
        out=target.path,
        first_boot=boot.first_boot,
        size=size,
        sha256=total.hexdigest(),
        files=names,
        memory_limit=memory_limit,
    )


def _copy(
    image: CardImage, target: CardTarget, boot: BootPartition, progress: Progress
) -> tuple[bytes, list[bytes], int]:
    """All but the first block, which is given back, with the digest of every block and the image's size."""
    head, size = b"", 0
    hashed: list[Future[bytes]] = []
    with ThreadPoolExecutor(1) as other:
        for block in image.blocks():
            hashed.append(other.submit(_digest, block))
            size += _put(target, block, size)
            head = head or block
            hashed[-1].result()  # one block ahead at most: memory is bounded
            progress("write", image.fraction)
    if size < boot.table.end:
        raise StorageError(
            f"the image is cut off: its partitions end at byte {boot.table.end}, it has {size}",
            hint="download it anew",
        )
    return head, [each.result() for each in hashed], size


def _put(target: CardTarget, block: bytes, offset: int) -> int:
    if target.size is not None and offset + len(block) > target.size:
        raise StorageError(
            f"the card is too small: the image has more than its {target.size} bytes",
            hint="take a larger card",
        )
    target.write(offset, block if offset else bytes(len(block)))
    if offset == 0:
        target.sync()
    return len(block)


def _digest(block: bytes | bytearray) -> bytes:
    return hashlib.sha256(block).digest()


def _personalise(
    card: Overlay, boot: BootPartition, files: Mapping[str, bytes]
) -> tuple[bool, tuple[str, ...]]:
    volume = FatVolume(card, boot.partition.start, boot.partition.size)
    when = datetime.datetime.now()
    for path, content in files.items():
        volume.write_file(path, content, when)
    names = list(files)
    cmdline = volume.read_file("cmdline.txt")
    if cmdline is not None:
        volume.write_file("cmdline.txt", edited_cmdline(cmdline, boot.first_boot), when)
        names.append("cmdline.txt")
    volume.flush()
    return cmdline is not None, tuple(names)


def _apply(card: Overlay, head: bytes, digests: list[bytes], target: CardTarget, size: int) -> bytes:
    """Write the changes, and put their blocks' new digests in place; the first block as it is to become."""
    blocks: dict[int, bytearray] = {}
    changes = list(card.changes())
    for offset, page in changes:
        number, within = divmod(offset, BLOCK)
        if number not in blocks:
            content = target.read(number * BLOCK, min(BLOCK, size - number * BLOCK)) if number else head
            if _digest(content) != digests[number]:
                raise _spoilt(target, number)
            blocks[number] = bytearray(content)
        blocks[number][within : within + len(page)] = page
    for number, changed in blocks.items():
        digests[number] = _digest(changed)
    for offset, page in changes:
        if offset >= BLOCK:
            target.write(offset, page)
    return bytes(blocks.get(0, head))


def _verify(
    target: CardTarget, digests: list[bytes], size: int, total: "hashlib._Hash", progress: Progress
) -> None:
    with ThreadPoolExecutor(1) as other:
        for number in range(1, len(digests)):
            block = target.read(number * BLOCK, min(BLOCK, size - number * BLOCK))
            same = other.submit(_digest, block)
            total.update(block)
            if same.result() != digests[number]:
                raise _spoilt(target, number)
            progress("verify", number / (len(digests) - 1))


def _spoilt(target: CardTarget, block: int) -> StorageError:
    return StorageError(
        f"{target.path} does not give back what was written: between bytes {block * BLOCK} and"
        f" {(block + 1) * BLOCK}",
        hint="the card or its reader is bad, or the card is smaller than it says: take another",
    )
