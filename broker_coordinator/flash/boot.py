"""What an image is: which partition it boots from, and how its first boot is told what to do."""

import enum
from dataclasses import dataclass

from broker_coordinator.flash.fat import FatVolume
from broker_coordinator.flash.overlay import Overlay
from broker_coordinator.flash.partitions import Partition, PartitionTable, ReadAt, read_partitions
from fl_protocol.errors import ConfigError

__all__ = ["BootPartition", "FirstBoot", "find_boot"]

MAX_NAMES = 12
_HOLD_FAT = ("FAT", "EFI system", "basic data")
_SEEDS = ("user-data", "meta-data")


class FirstBoot(enum.Enum):
    """How: by cloud-init from the FAT (Raspberry Pi OS since Trixie, Ubuntu, Debian), or by a script that
    ``cmdline.txt`` names (Raspberry Pi OS Bookworm)."""

    CLOUD_INIT = "cloud-init"
    SCRIPT = "firstrun.sh"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootPartition:
    """The FAT partition that is personalised, and the table that it is in."""

    table: PartitionTable
    partition: Partition
    kind: str
    first_boot: FirstBoot
    free_bytes: int


def find_boot(read: ReadAt) -> BootPartition:
    """Look into an image.

    Raises:
        ConfigError: it is no image that is understood here; the message says what was found instead.
    """
    table = read_partitions(read)
    found = []
    for partition in table.partitions:
        where = f"partition {partition.number}, {partition.kind}, {partition.size >> 20} MiB"
        if not any(word in partition.kind for word in _HOLD_FAT):
            found.append(where)
            continue
        try:
            volume = FatVolume(Overlay(read), partition.start, partition.size)
            names = volume.names()
        except ConfigError as error:
            found.append(f"{where}: {error}")
            continue
        held = {name.casefold() for name in names}
        if any(seed in held for seed in _SEEDS):
            mode = FirstBoot.CLOUD_INIT
        elif {"cmdline.txt", "config.txt"} <= held:
            mode = FirstBoot.SCRIPT
        else:
            listed = ", ".join(sorted(names)[:MAX_NAMES]) or "nothing"
            found.append(f"{where}: {volume.kind} with {listed}{' ...' if len(names) > MAX_NAMES else ''}")
            continue
        return BootPartition(
            table=table,
            partition=partition,
            kind=volume.kind,
            first_boot=mode,
            free_bytes=volume.free_bytes,
        )
    raise ConfigError(
        f"this image is not understood ({table.scheme}): no FAT partition has cloud-init's user-data or"
        " meta-data, or Raspberry Pi OS's cmdline.txt and config.txt",
        faults=found,
        hint="Raspberry Pi OS (Bookworm, Trixie) is, and Ubuntu and Debian with cloud-init on the FAT",
    )
